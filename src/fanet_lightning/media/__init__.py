"""What goes in and what comes out of the verbs that people use: pictures, videos, drawings, redactions."""

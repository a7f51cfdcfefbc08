"""From files and arrays to numbers. Knows no network, so any detector's predictions can be scored."""

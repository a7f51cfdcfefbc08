"""HEIC, what phones take photographs in: known by its first bytes, read where Pillow's plug-in for it is installed."""

import importlib

# ISO 14496-12 brands of files whose pictures are HEVC.
_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
NEEDS_PLUG_IN = "HEIC needs a plug-in (pip install pillow-heif)"


def is_heic(content: bytes) -> bool:
    """Whether a file that begins so says that it is HEIC; its first 12 bytes are enough."""
    return content[4:8] == b"ftyp" and content[8:12] in _BRANDS


def heic_plug_in() -> bool:
    """Make Pillow read HEIC from now on; False where the package pillow-heif is not installed."""
    try:
        importlib.import_module("pillow_heif").register_heif_opener()
    except ImportError:
        return False
    return True

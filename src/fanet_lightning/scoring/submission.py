"""The archive that the WIDER FACE test server takes.

The site asks for one text file per image of the test split, named as the image and in a folder named as its event
(``0--Parade/0_Parade_marchingband_1_5.txt``): a name line, a count line, rows ``left top width height score``. That is
the layout of :mod:`predictions`; the archive has the event folders at its top.
"""

import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fanet_lightning.errors import InputError
from fanet_lightning.files import replaced
from fanet_lightning.scoring.predictions import Predictions, read_folder, read_predictions

# The earliest that a zip can hold: equal predictions give equal archives.
_TIME = (1980, 1, 1, 0, 0, 0)


def write_submission(archive: Path, folder: Path, image_ids: Sequence[str]) -> Predictions:
    """Pack the predictions in ``folder`` and read the archive back.

    Args:
        archive: a ``.zip``; appears by rename, when it has been read back and holds what the folder holds.
        folder: predictions in the official layout.
        image_ids: every image that the archive must have a file for, ``event/name``.

    Returns:
        What the archive holds.

    Raises:
        InputError: an image without a file, a file of another image, or the archive cannot be written.
    """
    ids = sorted(image_ids)
    expected = read_predictions(folder, ids)
    if expected.missing:
        raise InputError(
            f"{folder}: {len(expected.missing)} of {len(ids)} images of the split have no file, the first is "
            f"'{expected.missing[0]}'; the server wants a file for each, with the count 0 where nothing was found"
        )
    files = read_folder(folder, set(ids), set(ids))
    try:
        with replaced(archive) as temporary:
            with zipfile.ZipFile(temporary, "w") as target:
                for image_id in ids:
                    member = zipfile.ZipInfo(f"{image_id}.txt", _TIME)
                    member.compress_type = zipfile.ZIP_DEFLATED
                    member.external_attr = 0o644 << 16
                    target.writestr(member, files[image_id].text)
            written = read_predictions(temporary, ids, strict=True)
            if not all(
                np.array_equal(getattr(written, name), getattr(expected, name))
                for name in ("starts", "boxes_xywh", "scores")
            ):
                raise InputError(f"{archive} does not read back as {folder}; the disk may be faulty, try another one")
    except OSError as error:
        raise InputError(f"{archive} cannot be written ({error.strerror}); free the disk") from error
    return written

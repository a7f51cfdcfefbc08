"""The published curves in the package: every published AP to four decimals, and near the original points."""

import numpy as np

from fanet_lightning.score.curves import average_precision
from fanet_lightning.score.wider_face.published import FILE, SETTINGS, method_name, published_curve, published_methods
from tests.score.helpers import refused


def test_every_curve_gives_its_published_ap() -> None:
    assert FILE.stat().st_size < 400_000
    assert (len(published_methods("val")), len(published_methods("test"))) == (40, 41)
    assert list(published_methods()["FANet"].values()) == [0.9562, 0.9475, 0.8954]
    for split in ("val", "test"):
        for method, settings in published_methods(split).items():
            assert list(settings) == list(SETTINGS)
            for setting, ap in settings.items():
                precision, recall = published_curve(method, split, setting)
                assert not precision.flags.writeable
                assert round(average_precision(precision, recall), 4) == ap, (split, method, setting)
                assert (np.diff(recall) >= 0).all() and precision.min() >= 0 and precision.max() <= 1


def test_names_people_use() -> None:
    assert method_name("s3fd") == "SFD"
    assert method_name("fanet") == "FANet"
    assert method_name("FAN") == "FAN"  # Face Attention Network, another paper
    refused(r"'FANnet'.*FANet", method_name, "FANnet")
    refused("split=train", published_methods, "train")

"""Write a model as one file: ``fanet export format=onnx out=faces.onnx``."""

from pathlib import Path

from fanet_lightning.cli import main as cli

USAGE = (
    "fanet export [checkpoint=FILE|FOLDER|NAME] [format=onnx|openvino|torchscript|torch_export] [out=FILE] "
    "[dtype=float32|int8]"
)


def main(argv: list[str]) -> int:
    """The command line."""
    config = cli.verb_config("export", argv, USAGE, required=["checkpoint"])
    if config is None:
        return 0
    from fanet_lightning.cli.config import plain
    from fanet_lightning.export.run import export

    cli.check_whole(config, calibration_images=1, rounds=1)
    options = plain(config)
    for key in ("out", "calibration", "images"):
        options[key] = options[key] and Path(str(options[key]))
    export(str(options.pop("checkpoint")), form=str(options.pop("format")), **options)
    return 0


if __name__ == "__main__":
    cli.run(main)

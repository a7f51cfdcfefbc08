"""Write a model as one file: ``python -m fanet_lightning.export format=onnx out=faces.onnx``."""

from pathlib import Path

from fanet_lightning.cli import main as cli

USAGE = (
    "python -m fanet_lightning.export [checkpoint=FILE|FOLDER|NAME] [format=onnx|torchscript|torch_export] [out=FILE] "
    "[dtype=float32|bf16|int8]"
)


def main(argv: list[str]) -> int:
    """The command line."""
    config = cli.verb_config("export", argv, USAGE, required=["checkpoint"])
    if config is None:
        return 0
    from fanet_lightning.cli.config import plain
    from fanet_lightning.export.run import DISAGREES, ENDINGS, RUNTIMES, export, summary_lines
    from fanet_lightning.export.verify import BOX_LIMIT, SCORE_LIMIT
    from fanet_lightning.models.pretrained import locate, name_of

    options = plain(config)
    name = name_of(locate(str(options["checkpoint"])))
    form, dtype = str(options["format"]), str(options["dtype"])
    ending = ("" if dtype == "float32" else f".{dtype}") + ENDINGS.get(form, "")
    out = Path(str(options["out"])) if options["out"] else Path("outputs/export") / f"{name}{ending}"
    images = Path(str(options["images"])) if options["images"] else None
    result = export(
        str(options["checkpoint"]), out, form=form, dtype=dtype, detection=options["detection"], opset=options["opset"],
        calibration=Path(str(options["calibration"])) if options["calibration"] else None,
        calibration_images=options["calibration_images"], images=images, rounds=options["rounds"],
        overwrite=options["overwrite"],
    )  # fmt: skip
    tried = f"images of {images}" if images else "a photograph in five sizes, a single pixel and a batch of three"
    print("\n".join(summary_lines(result, name, out, form, dtype, tried, options["rounds"])))
    if not result.kept:
        print(
            f"{RUNTIMES[form]} does not find the same faces (limits: {BOX_LIMIT} px, {SCORE_LIMIT:g} in score); "
            f"{out} was not written"
        )
        return DISAGREES
    return 0


if __name__ == "__main__":
    cli.run(main)

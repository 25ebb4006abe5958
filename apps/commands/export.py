"""`dinomed export`: a backbone, an adapter or an ensemble in the format of another tool."""

from typing import Annotated

from typer import Argument, Option

from dinomed.apps.options import ImageSize, Json, Mean, Output, Overwrite, Quiet, Std, Weights


def export(
    source: Annotated[str, Argument(help="Folder of an adapter or ensemble, run folder, backbone folder, or a name.")],
    format: Annotated[str, Option("--format", "-f", help="onnx, safetensors, timm, transformers or monai.")],
    out: Output,
    dynamic_size: Annotated[
        bool, Option("--dynamic-size", help="ONNX: accept images of any size, not only that of the backbone.")
    ] = False,
    weights: Weights = None,
    backbone: Annotated[
        str | None, Option("--backbone", "-b", help="Where the backbone of the adapter is now, if it was moved.")
    ] = None,
    image_size: ImageSize = None,
    mean: Mean = None,
    std: Std = None,
    overwrite: Overwrite = False,
    push: Annotated[
        str | None,
        Option("--push", metavar="ORG/NAME", help="Upload the export to this new repository of the Hugging Face hub."),
    ] = None,
    public: Annotated[bool, Option("--public", help="With --push: a public repository, not a private one.")] = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Export a backbone, an adapter or an ensemble to a folder that another tool loads.

    The other tool loads the export, and its outputs are compared with the original; if they differ, nothing is written.
    The folder has a card (README.md), a NOTICE and export.json. Nothing is uploaded without --push. For research use
    only, not for diagnosis.
    """
    arguments = locals()
    from dinomed.apps.api.export import export as export_model
    from dinomed.apps.ending import print_end
    from dinomed.apps.output import api_arguments, emit

    report = export_model(**api_arguments(arguments))
    if as_json:
        emit(report, True)
        return
    parity = report["parity"]
    shown = {
        "output": report["output"],
        "format": format,
        "task": report["source"]["task"],
        "files": ", ".join(report["files"]),
        "compared with": parity.get("compared_with") or parity.get("note"),
        "largest difference": None if "largest_difference" not in parity else f"{parity['largest_difference']:.1e}",
        "note": report["purpose"],
    }
    if push:
        visibility = "private" if report["pushed"]["private"] else "public"
        shown["uploaded to"] = f"{report['pushed']['url']} ({visibility})"
    emit(shown, False)
    print_end([report["output"]], (["doctor"], {"path": report["output"]}))

"""Examples of the commands: two for each, shown at the end of its help and on the page of the commands."""

EXAMPLES: dict[str, tuple[str, str]] = {
    "": (
        "dinomed quickstart --no-demo",
        "dinomed train classify -b runs/ssl --data data.parquet -o runs/cls",
    ),
    "quickstart": (
        "dinomed quickstart --no-demo",
        "dinomed quickstart --data FOLDER --labels labels.csv --group patient_id -o runs/mine",
    ),
    "doctor": ("dinomed doctor", "dinomed doctor runs/cls"),
    "models": ("dinomed models", "dinomed models --json"),
    "config": (
        "dinomed config show segment segment_unet",
        "dinomed config diff pretrain vit_tiny_cpu runs/ssl",
    ),
    "config schema": (
        "dinomed config schema pretrain -o pretrain.schema.json",
        "dinomed config schema classify",
    ),
    "config show": (
        "dinomed config show pretrain vit_tiny_cpu --set run.steps=500",
        "dinomed config show classify runs/cls",
    ),
    "config diff": (
        "dinomed config diff pretrain vit_tiny_cpu",
        "dinomed config diff classify runs/cls runs/cls_tuned",
    ),
    "scan": (
        "dinomed scan FOLDER -o data.parquet",
        "dinomed scan FOLDER --labels labels.csv --group patient_id -o data.parquet",
    ),
    "frames": (
        "dinomed frames video.mp4 -o frames",
        "dinomed frames VIDEOS --fps 1 --min-sharpness 50 -o frames",
    ),
    "slices": (
        "dinomed slices VOLUMES --window lung -o slices",
        "dinomed slices VOLUMES --axis coronal --masks MASKS -o slices",
    ),
    "curate": (
        "dinomed curate --pool pool.parquet -b runs/ssl -o curated.parquet",
        "dinomed curate --pool pool.parquet --trusted data.parquet -b runs/ssl -o curated.parquet --dry-run",
    ),
    "audit": (
        "dinomed audit train.parquet test.parquet -o audit.html",
        "dinomed audit data.parquet --labels label -b runs/ssl -o label_errors.html",
    ),
    "pretrain": (
        "dinomed pretrain vit_tiny_cpu --data data.parquet -o runs/ssl",
        "dinomed pretrain vit_tiny_cpu --data data.parquet -o runs/ssl --resume",
    ),
    "distill": (
        "dinomed distill distill_vits --teacher runs/large --data data.parquet -o runs/small",
        "dinomed distill distill_vits --teacher runs/large --data data.parquet -o runs/small --dry-run",
    ),
    "features": (
        "dinomed features data.parquet -b runs/ssl -o features.parquet",
        "dinomed features FOLDER -b dinov2_vits14 --tokens cls+mean -o features.parquet",
    ),
    "probe": (
        "dinomed probe runs/ssl --data data.parquet",
        "dinomed probe runs/ssl --data data.parquet --few-shot 1,4,16,all -o runs/probe",
    ),
    "train": (
        "dinomed train classify -b runs/ssl --data data.parquet -o runs/cls",
        "dinomed train segment --head unet -b runs/ssl --data data.parquet -o runs/seg",
    ),
    "train classify": (
        "dinomed train classify --head auto -b runs/ssl --data data.parquet -o runs/cls",
        "dinomed train classify --label oedema,effusion --folds 5 -b runs/ssl --data data.parquet -o runs/cls",
    ),
    "train segment": (
        "dinomed train segment --head unet -b runs/ssl --data data.parquet -o runs/seg",
        "dinomed train segment --tune lora -b runs/ssl --data data.parquet -o runs/seg_lora",
    ),
    "train depth": (
        "dinomed train depth -b runs/ssl --data data.parquet -o runs/depth",
        "dinomed train depth --head dpt -b runs/ssl --data data.parquet -o runs/depth",
    ),
    "evaluate": (
        "dinomed evaluate runs/cls --data data.parquet --split test -o runs/report",
        "dinomed evaluate runs/cls runs/cls_tuned --data data.parquet",
    ),
    "predict": (
        "dinomed predict runs/seg NEW_IMAGES -o predicted",
        "dinomed predict runs/cls data.parquet --abstain 0.1 -o predicted",
    ),
    "index": (
        "dinomed index data.parquet -b runs/ssl -o runs/index",
        "dinomed index data.parquet -b runs/ssl --where split=train -o runs/index",
    ),
    "search": (
        "dinomed search image.jpg -i runs/index -k 10",
        "dinomed search NEW_IMAGES -i runs/index --evidence -o runs/matches",
    ),
    "show": (
        "dinomed show pca FOLDER -b runs/ssl -o pca.png",
        "dinomed show map data.parquet -b runs/ssl -o map.html",
    ),
    "show pca": (
        "dinomed show pca FOLDER -b runs/ssl -o pca.png",
        "dinomed show pca a.jpg b.jpg -b runs/ssl --whole -o pca.png",
    ),
    "show attention": (
        "dinomed show attention image.jpg -b runs/ssl -o attention.png",
        "dinomed show attention image.jpg -b runs/ssl --mass 0.6 -o attention.png",
    ),
    "show match": (
        "dinomed show match a.jpg b.jpg -b runs/ssl -o match.png",
        "dinomed show match a.jpg b.jpg -b runs/ssl --count 20 -o match.png",
    ),
    "show map": (
        "dinomed show map data.parquet -b runs/ssl -o map.html",
        "dinomed show map data.parquet -b runs/ssl --color label --limit 2000 -o map.html",
    ),
    "show similarity": (
        "dinomed show similarity a.jpg b.jpg -b runs/ssl --at 120,80 -o similarity.png",
        "dinomed show similarity image.jpg -b runs/ssl --at 120,80 -o similarity.html",
    ),
    "export": (
        "dinomed export runs/cls --format onnx -o exported",
        "dinomed export runs/ssl --format timm -o exported",
    ),
    "demo": (
        "dinomed demo segment --adapter runs/seg",
        "dinomed demo all --segment runs/seg --classify runs/cls --index runs/index",
    ),
    "demo segment": (
        "dinomed demo segment --adapter runs/seg",
        "dinomed demo segment --adapter runs/seg --save corrections",
    ),
    "demo classify": (
        "dinomed demo classify --adapter runs/cls",
        "dinomed demo classify --adapter runs/cls --index runs/index",
    ),
    "demo retrieve": (
        "dinomed demo retrieve --index runs/index",
        "dinomed demo retrieve --index runs/index --examples FOLDER",
    ),
    "demo all": (
        "dinomed demo all --segment runs/seg --classify runs/cls",
        "dinomed demo all --adapter runs/depth --index runs/index",
    ),
}
"""Words of a command, such as ``train classify`` -> two command lines."""


def examples_epilog(command: str) -> str | None:
    r"""Return the end of the help of a command; None for the command of a plug-in.

    >>> print(examples_epilog("doctor").replace("\b", "-"))
    -
    Examples:
      dinomed doctor
      dinomed doctor runs/cls
    """
    if command not in EXAMPLES:
        return None
    return "\n".join(["\b", "Examples:", *(f"  {line}" for line in EXAMPLES[command])])  # \b: lines are not joined

"""Opening a dataset: a manifest, a folder of images, or one image file."""

from dataclasses import replace
from pathlib import Path

from dinomed.datasets.manifest import Manifest, is_manifest, read_manifest
from dinomed.datasets.scan.scan import scan, scan_file
from dinomed.errors import DinomedError, UsageError
from dinomed.images.frames import image_file
from dinomed.io.output_folder import check_writable
from dinomed.log import logger
from dinomed.video.facts import container_of

_LISTED = 5  # unreadable files that are warned about one by one


def open_dataset(source: Manifest | str | Path, *, allow_unreadable: bool = False, decode: bool = False) -> Manifest:
    """Open a manifest, a folder of images, or one image file.

    Of a curated manifest, only the rows with ``keep = true`` are returned; the other rows are copies, unusable images,
    and images of evaluation sets. A folder is scanned in memory, without labels and splits; folders in it that hold
    predictions are ignored. By default only headers are read, and masks are paired with images by name: a damaged
    image or mask is reported by the step that decodes it.

    Args:
        source: path of the manifest, folder or image; a manifest object is returned as it is.
        allow_unreadable: of a folder, accept any number of unreadable files without a warning; the caller reports
            `Manifest.unreadable`. By default each is warned about, and more than half of the files are an error.
        decode: decode every image of a folder, to find damaged ones now.

    Raises:
        UsageError: `source` does not exist, or holds no readable image.
        DinomedError: the image cannot be read, the manifest is damaged, or more than half of the files of the folder
            cannot be read.
    """
    if isinstance(source, Manifest):
        return source
    path = Path(source)
    if not path.exists() and image_file(path).is_file():
        raise UsageError(f"{path} is a frame of a video; give a manifest that holds it, of `dinomed scan --videos`")
    if not path.exists():
        raise UsageError(f"{path} does not exist; give a manifest, a folder of images, or an image")
    if path.is_dir():
        result = scan(path, make_split=False, allow_unreadable=allow_unreadable, decode=decode)
        if not allow_unreadable:
            _warn_unreadable(path, result.unreadable)
        if result.multi_frame:
            logger.warning(
                f"DICOM files of {path} with several frames: {result.multi_frame:,}; the first frame of each is used "
                "(`dinomed frames` writes all)"
            )
        return replace(result.manifest, source=path, unreadable=tuple(result.unreadable), decoded=decode)
    if not path.is_file():
        raise UsageError(f"{path} is a pipe or a device; give a manifest, a folder of images, or an image")
    if container_of(path) is not None:
        raise UsageError(
            f"{path} is a video; give a manifest of its frames: dinomed scan {path.parent} --videos -o M.parquet, or "
            f"dinomed frames {path} -o DIR, which writes them"
        )
    if not is_manifest(path):
        return replace(scan_file(path, decode=decode), source=path, decoded=decode)
    manifest = read_manifest(path)
    kept = manifest.kept()
    if len(kept) < len(manifest):
        logger.info(f"{path}: {len(kept):,} images are used, {len(manifest) - len(kept):,} have keep = false")
    return kept


def _warn_unreadable(folder: Path, unreadable: list[tuple[str, str]]) -> None:
    for name, reason in unreadable[:_LISTED]:
        logger.warning(f"{folder / name}: {reason}; ignored")
    if len(unreadable) > _LISTED:
        logger.warning(f"{len(unreadable) - _LISTED} more files of {folder} cannot be read; `dinomed scan` lists them")


def check_manifest_output(out: Path, overwrite: bool) -> None:
    """Raise, before the scan, if `out` cannot be written after it or is a file other than a manifest."""
    if out.suffix.lower() not in (".parquet", ".csv"):
        raise UsageError(f"output {out}: a manifest is a .parquet or .csv file")
    if out.is_dir():
        raise UsageError(f"output {out} is a folder; give a file, such as {out / 'manifest.parquet'}")
    if out.exists() and not overwrite:
        raise UsageError(f"output {out} exists already; add `overwrite=True` to replace it")
    if out.exists():
        try:
            read_manifest(out, root=out.parent)
        except DinomedError as error:
            raise UsageError(f"output {out} is not a manifest and is not overwritten: {error}") from None
    check_writable(out.parent)

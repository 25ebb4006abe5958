"""`dinomed doctor`: versions, devices and cache of this machine, for example for a problem report."""

from dinomed.apps.options import Json


def doctor(as_json: Json = False) -> None:
    """Show versions, devices and the cache of this machine."""
    from dataclasses import asdict

    from dinomed.apps.api.doctor import doctor as examine
    from dinomed.apps.output import build_table, emit

    report = examine()
    writable = "writable" if report.cache.writable else "not writable"
    rows = [("python", report.python), ("system", report.system)]
    rows += [(name, number or "not installed") for name, number in report.packages.items()]
    rows += [("processors", f"{report.processors}, of which torch uses {report.threads}")]
    rows += [(device.name, device.about) for device in report.devices]
    rows += [
        ("used by --device auto", report.auto),
        ("attention on CUDA", report.attention),
        ("cache of weights", f"{report.cache.folder} ({writable})"),
        ("Chromium (browser tests only)", report.chromium or "not found: apt-get install chromium fonts-dejavu-core"),
    ]
    emit(asdict(report), as_json, None if as_json else build_table(("", ""), rows))

"""Loading the settings of a curation imports no heavy library."""

import subprocess
import sys


def test_the_settings_load_without_torch_faiss_and_opencv() -> None:
    code = (
        "import sys; from dinomed.pretrain.curation.config import CurationConfig; CurationConfig();"
        "print([name for name in ('torch', 'faiss', 'cv2') if name in sys.modules])"
    )
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=120)
    assert loaded.stdout.strip() == "[]"

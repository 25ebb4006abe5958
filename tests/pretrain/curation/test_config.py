"""Loading the settings of a curation or a pretraining imports no heavy library."""

import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    "statements",
    [
        "from dinomed.pretrain.curation.config import CurationConfig; CurationConfig()",
        "from dinomed.pretrain.config import PretrainConfig; PretrainConfig()",
        "import dinomed; dinomed.resolve_config('pretrain')",
    ],
)
def test_the_settings_load_without_torch_faiss_and_opencv(statements: str) -> None:
    code = f"import sys; {statements}; print([name for name in ('torch', 'faiss', 'cv2') if name in sys.modules])"
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=120)
    assert loaded.stdout.strip() == "[]"

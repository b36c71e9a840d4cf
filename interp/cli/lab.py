"""The command that opens the notebooks."""

import importlib.util
import shutil
import subprocess
import sys
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path

from tyro.conf import Positional

PACKAGE = "lvlm-interp"


def shipped_notebooks() -> list[Path]:
    """The notebooks that came with interp: of the repository it runs from, else what was installed with the package.

    Raises ValueError where there are none.
    """
    repository = Path(__file__).parent.parent.parent / "notebooks"
    found = sorted(repository.glob("*.ipynb"))
    if not found:
        try:
            listed = files(PACKAGE) or []
        except PackageNotFoundError:
            listed = []
        found = sorted(Path(str(f.locate())) for f in listed if f.suffix == ".ipynb")
    there = [path for path in found if path.is_file()]
    if not there:
        raise ValueError(
            f"the notebooks did not come with this installation (looked in {repository} and among the files of "
            f"{PACKAGE}); install it from a wheel or from its repository"
        )
    return there


@dataclass(frozen=True)
class Lab:
    """Copy the notebooks into a folder and open them in JupyterLab; what was changed there is kept.

    They run on the bundled testbed; 06 runs on the model in INTERP_MODEL.
    """

    folder: Positional[str] = "interp-notebooks"
    """Folder for the copies; made if need be. A notebook that is there already is left as it is."""
    copy_only: bool = False
    """Copy, and do not start JupyterLab."""
    no_browser: bool = False
    """Print the address instead of opening a browser."""

    def __call__(self) -> int:
        """Copy and start; the exit code is JupyterLab's."""
        folder = Path(self.folder)
        if not self.copy_only and importlib.util.find_spec("jupyterlab") is None:
            raise ValueError("JupyterLab is not installed; pip install 'lvlm-interp[notebooks]' brings it")
        folder.mkdir(parents=True, exist_ok=True)
        for path in shipped_notebooks():
            copy = folder / path.name
            if copy.exists():
                print(f"{copy}: there already, left as it is")
            else:
                shutil.copyfile(path, copy)
                print(copy)
        if self.copy_only:
            return 0
        options = ["--no-browser"] if self.no_browser else []
        return subprocess.run([sys.executable, "-m", "jupyterlab", *options, str(folder)], check=False).returncode

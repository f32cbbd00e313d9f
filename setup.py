"""pyproject.toml says all; this only lets a wheel hold what a checkout has beside the package."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

PROJECT = ("notebooks/**/*.ipynb", "notebooks/sweeps/*.toml", "docs/*", "data/registry.json",
           "outputs/reference/**/*")  # fmt: skip


class BuildPy(build_py):
    """-> gsas_lab/project, where `gsas_lab.files.ROOT` finds it in an installed package."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return
        for path in (p for pattern in PROJECT for p in Path().glob(pattern) if p.is_file()):
            place = Path(self.build_lib) / "gsas_lab" / "project" / path
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, place)


setup(cmdclass={"build_py": BuildPy})

"""Builds fastvfx._C with CMake and Ninja. Everything else about the package is in pyproject.toml."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pybind11
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext


class CMakeBuild(build_ext):
    def build_extension(self, ext: Extension) -> None:
        source = Path(__file__).parent.resolve()
        target = Path(self.get_ext_fullpath(ext.name)).parent.resolve()
        # Not self.build_temp: an editable install would get a new one, and compile everything anew, every time.
        build = source / "build" / f"cmake-{sys.implementation.cache_tag}-{self.plat_name}"
        build.mkdir(parents=True, exist_ok=True)
        # Build isolation puts pybind11 and ninja in a new temporary folder every time, so what an earlier
        # configuration remembers of them is stale: both are always given.
        configure = [
            f"-S{source}",
            f"-B{build}",
            "-GNinja",
            "-DCMAKE_BUILD_TYPE=Release",
            "-DBUILD_TESTING=OFF",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            f"-DCMAKE_MAKE_PROGRAM={shutil.which('ninja') or 'ninja'}",
            f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={target}",
            f"-DFASTVFX_CUDA={os.environ.get('FASTVFX_CUDA', 'auto')}",
        ]
        archs = os.environ.get("FASTVFX_CUDA_ARCHS", "").replace(",", ";").replace(" ", ";")
        configure.append(f"-DFASTVFX_CUDA_ARCHS={archs}" if archs else "-UFASTVFX_CUDA_ARCHS")
        subprocess.run(["cmake", *configure], check=True)
        subprocess.run(["cmake", "--build", str(build), *([f"-j{self.parallel}"] if self.parallel else [])], check=True)


setup(ext_modules=[Extension("fastvfx._C", sources=[])], cmdclass={"build_ext": CMakeBuild})

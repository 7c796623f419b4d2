#!/bin/sh
# Install lifelong-reid from the wheels beside this file, without network: sh install.sh [FOLDER], by default /opt/reid.
# For Python @PYTHON@ on @PLATFORM@; name another interpreter with PYTHON=python@PYTHON@.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
folder=${1:-/opt/reid}
python=${PYTHON:-python3}

(cd "$here" && sha256sum --check --quiet SHA256SUMS) || { echo "the wheelhouse is damaged: copy it again" >&2; exit 1; }
found=$("$python" -c 'import platform, sys; print("%d.%d on %s" % (*sys.version_info[:2], platform.machine()))')
if [ "$found" != "@PYTHON@ on @PLATFORM@" ]; then
  echo "these wheels are for Python @PYTHON@ on @PLATFORM@, but $python is $found; set PYTHON, or make the wheelhouse for that one" >&2
  exit 1
fi
"$python" -m venv "$folder"
PIP_CONFIG_FILE=/dev/null "$folder/bin/python" -m pip install --quiet --disable-pip-version-check --isolated --no-index \
  --find-links "$here" --requirement "$here/requirements.txt"
# An update may carry the same version number: this one counts.
PIP_CONFIG_FILE=/dev/null "$folder/bin/python" -m pip install --quiet --disable-pip-version-check --isolated --no-index --no-deps --force-reinstall \
  "$here"/lifelong_reid-*.whl
"$folder/bin/reid" doctor

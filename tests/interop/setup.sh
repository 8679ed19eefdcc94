#!/bin/sh
# Create .venv-interop, the environment of tests/interop/clients, if it is missing or outdated.
# It has a copy of the requirements file, which the tests compare.
set -eu
cd "$(dirname "$0")/../.."
wanted=tests/interop/clients/requirements.txt
if cmp -s "$wanted" .venv-interop/requirements.txt; then
  exit 0
fi
rm -rf .venv-interop
"${PYTHON:-python3}" -m venv .venv-interop
.venv-interop/bin/python -m pip install --quiet --disable-pip-version-check -r "$wanted"
cp "$wanted" .venv-interop/requirements.txt

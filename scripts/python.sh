# Sourced by scripts/meshnode and scripts/test: finds the checkout ($root) and a Python 3.11+ ($python), or says what to install.
# shellcheck shell=sh

root=$(dirname "$(dirname "$(readlink -f "$0")")")
python=

# The private environment's own Python comes first: what it was made with must not depend on the shell it is called from.
for candidate in "$root/.venv/bin/python" "${MESHNODE_PYTHON:-python3}" python3.14 python3.13 python3.12 python3.11; do
    if "$candidate" -ISc 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
        python=$candidate
        break
    fi
done

if [ -z "$python" ]; then
    {
        echo "meshnode needs Python 3.11 or newer, and there is none on PATH. Install it, then run this again:"
        echo "    Debian, Ubuntu:  sudo apt install python3 python3-venv g++"
        echo "    Fedora:          sudo dnf install python3 gcc-c++"
        echo "    macOS:           brew install python"
        echo "MESHNODE_PYTHON=/path/to/python3 names one that is not on PATH."
    } >&2
    exit 1
fi

# Which Python the scripts use: that of the active environment, else that of `make`. To be read with `source`.
torchrun=${TORCHRUN:-$(command -v torchrun || echo .venv/bin/torchrun)}
python=${PYTHON:-$(dirname "$torchrun")/python}

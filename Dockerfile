# The trainer on a machine with NVIDIA GPUs, their driver, and the NVIDIA Container Toolkit. PyTorch brings CUDA along.
#
#   docker build --tag gpt2 .
#   VOLUMES='--volume gpt2-data:/gpt2/data --volume gpt2-runs:/gpt2/runs'
#   docker run --rm --gpus all --ipc host $VOLUMES --entrypoint python gpt2 fineweb.py
#   docker run --rm --gpus all --ipc host $VOLUMES gpt2 gpt2-124m
#   docker run --rm --gpus all --ipc host $VOLUMES --entrypoint torchrun gpt2 \
#       --standalone --nproc_per_node=8 train_gpt2.py gpt2-124m
FROM python:3.11-slim

# torch.compile calls a C++ compiler
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/*

RUN useradd --create-home --uid 1000 gpt2
WORKDIR /gpt2

# PyTorch and CUDA first: this layer takes long, and changes with the constraints only
COPY constraints.txt ./
RUN pip install --no-cache-dir torch -c constraints.txt

COPY . .
RUN pip install --no-cache-dir --editable '.[gpu]' -c constraints.txt \
    && mkdir --parents data runs \
    && chown gpt2:gpt2 . data runs

USER gpt2
ENV PYTHONUNBUFFERED=1
ENTRYPOINT ["python", "train_gpt2.py"]
CMD ["--help"]

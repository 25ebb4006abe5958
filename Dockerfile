# dinomed as an ordinary user, offline, with the versions of requirements.lock.
#   docker build --build-arg TORCH=cpu -t dinomed:0.1.0-cpu .      (or TORCH=cuda, the default)
#   docker run --rm --network none -v "$PWD/data:/data" dinomed:0.1.0-cpu scan /data/images -o /data/manifest.parquet
# With TORCH=cuda the machine needs the driver and the container toolkit of NVIDIA: docker run --gpus all ...
FROM python:3.11-slim-bookworm

ARG TORCH=cuda
WORKDIR /opt/dinomed
COPY requirements.lock ./
# cpu: torch and torchvision come from the index of PyTorch, which the lock has no hashes of; xformers has no CPU kernel.
RUN set -eu; \
    case "$TORCH" in \
    cuda) pip install --no-cache-dir --require-hashes -r requirements.lock ;; \
    cpu) awk '/^[a-z]/ { skip = /^(torch|torchvision|xformers|triton|nvidia-[^=]*|cuda-[^=]*)==/ } !skip' \
            requirements.lock > rest.lock; \
        pip install --no-cache-dir --no-deps --require-hashes -r rest.lock; \
        pip install --no-cache-dir uv==0.13.9; \
        uv pip install --system --no-cache --no-deps --torch-backend cpu \
            $(sed -nE 's/^(torch|torchvision)(==[^ ;]+).*/\1\2/p' requirements.lock) ;; \
    *) echo "TORCH=$TORCH is unknown; use cpu or cuda"; exit 2 ;; \
    esac
COPY . .
RUN pip install --no-cache-dir --no-deps --no-build-isolation . \
    && useradd --create-home --uid 1000 dinomed \
    && install -d -o dinomed -g dinomed /data /cache

ENV DINOMED_CACHE=/cache \
    GRADIO_ANALYTICS_ENABLED=False \
    HF_HUB_OFFLINE=1 \
    NO_ALBUMENTATIONS_UPDATE=1 \
    TRANSFORMERS_OFFLINE=1
USER dinomed
WORKDIR /data
ENTRYPOINT ["dinomed"]
CMD ["--help"]

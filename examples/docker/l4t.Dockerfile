# refusion-edge on a Jetson with JetPack 6 (L4T 36). Build it on the Jetson, in the source folder:
#   docker build -f examples/docker/l4t.Dockerfile -t refusion-edge .
#   docker run --rm --runtime nvidia --network host --device /dev/video0 --device /dev/video2 refusion-edge \
#       stream --ir '/dev/video0?format=y16' --vis /dev/video2 --headless -o view://127.0.0.1:8080
# NVIDIA's image contains CUDA, TensorRT and its bindings for the system's Python 3.10.
ARG BASE=nvcr.io/nvidia/l4t-jetpack:r36.4.0
FROM ${BASE}

SHELL ["/bin/bash", "-o", "pipefail", "-c"]
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ cmake python3-dev python3-venv python3-gi gir1.2-gst-plugins-base-1.0 \
        gstreamer1.0-plugins-base gstreamer1.0-plugins-good gstreamer1.0-python3-plugin-loader python3-gst-1.0 gstreamer1.0-tools \
    && rm -rf /var/lib/apt/lists/*

COPY . /src
# The TensorRT bindings are system packages. cuda-bindings must have the major version of CUDA in the image.
ARG CUDA_MAJOR=12
RUN python3 -m venv --system-site-packages /opt/refusion-edge \
    && /opt/refusion-edge/bin/pip install --no-cache-dir --upgrade 'pip>=25.1' \
    && /opt/refusion-edge/bin/pip install --no-cache-dir '/src[stream,fused]' "cuda-bindings==${CUDA_MAJOR}.*" -Cwheel.cmake=true \
    && /opt/refusion-edge/bin/python -m refusion_edge.gstreamer --folder /usr/lib/aarch64-linux-gnu/gstreamer-1.0 \
    && rm -rf /src

RUN useradd --create-home --uid 10001 --groups video fusion
USER 10001
WORKDIR /home/fusion
ENTRYPOINT ["/opt/refusion-edge/bin/refusion-edge"]
CMD ["doctor"]

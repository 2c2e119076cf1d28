# An image that runs experiments and joins clusters; clusters/README.md tells how it is used.
#
#     docker build --target cpu --tag ript-ray:cpu .
#     docker build --target gpu --tag ript-ray:gpu --build-arg IMAGE=nvidia/cuda:12.8.1-base-ubuntu24.04 .
#
# IMAGE is any Debian or Ubuntu with Python 3.11 or newer. Of NVIDIA's runtime images the smallest will do: torch brings
# CUDA's libraries, and the host lends its driver. pip takes packages from where it is set up to, or from where the build
# arguments PIP_INDEX_URL and PIP_EXTRA_INDEX_URL say: for `cpu` that should be PyTorch's index of the CPU build, as the
# default build of torch brings several GB of CUDA.

ARG IMAGE=debian:bookworm-slim

FROM ${IMAGE} AS base
COPY envs/ript_envs/system_libraries.txt /tmp/
# Debian keeps only the newest version of a package, so none can be pinned. KubeRay asks for a pod's health by wget;
# the head of Ray's cluster launcher reaches the others by ssh and rsync.
# hadolint ignore=DL3008
RUN apt-get update \
    && awk '!/^#/ {print $2}' /tmp/system_libraries.txt >/tmp/packages.txt \
    && DEBIAN_FRONTEND=noninteractive xargs --arg-file=/tmp/packages.txt apt-get install --yes --no-install-recommends \
        ca-certificates openssh-client python3 python3-venv rsync wget \
    && rm -rf /var/lib/apt/lists/* /tmp/packages.txt /tmp/system_libraries.txt
# Ubuntu's image gives the first user's number, which files of the host mostly have, to a user of its own.
RUN if id ubuntu >/dev/null 2>&1; then userdel --remove ubuntu; fi \
    && useradd --create-home --uid 1000 ript \
    && install --directory --owner=ript --group=ript /srv/ript /srv/ript/runs \
    && python3 -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH

# The packages depend on two files only: a change of the sources installs none of them again.
FROM base AS packages
ARG EXTRAS=metaworld,libero,openvla
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
WORKDIR /opt/ript-ray
COPY pyproject.toml constraints.txt ./
# ript-ray itself is a stand-in here.
RUN mkdir -p envs/ript_envs ript_ray \
    && echo '__version__ = "0"' >ript_ray/__init__.py \
    && touch envs/ript_envs/__init__.py LICENSE README.md \
    && pip install --no-cache-dir --disable-pip-version-check -c constraints.txt ".[$EXTRAS]"

FROM packages AS cpu
COPY . ./
RUN pip install --no-cache-dir --disable-pip-version-check --no-deps --editable .
ENV PYTHONPATH=/opt/ript-ray:/opt/ript-ray/envs
# A number, so that Kubernetes can tell that it is not root's.
USER 1000
# Runs, data and MLflow's database are written here.
WORKDIR /srv/ript
HEALTHCHECK --interval=10m --timeout=2m --start-period=1m CMD ["ript-ray", "doctor"]
CMD ["ript-ray", "doctor"]

FROM cpu AS gpu
# What the host lends of its driver: EGL, too, which images are rendered with.
ENV NVIDIA_DRIVER_CAPABILITIES=compute,graphics,utility

# Images: `--target cpu`, `--target gpu`, and `--target eval` with the benchmarks. All run as an unprivileged user and
# store data in /data; the root file system may be read-only.
FROM python:3.11-slim AS base
ENV PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 OMP_WAIT_POLICY=PASSIVE
ENV EMBEDSERVE_HOST=0.0.0.0 EMBEDSERVE_PORT=8080 EMBEDSERVE_DATA_DIR=/data
WORKDIR /app
RUN useradd --create-home --uid 10001 embedserve && mkdir /data && chown embedserve /data
COPY pyproject.toml README.md LICENSE ./
COPY constraints constraints
COPY embedserve embedserve
COPY indexing indexing
COPY api api
COPY benchmarks benchmarks
VOLUME /data
EXPOSE 8080
ENTRYPOINT ["embedserve"]
CMD ["serve", "--build-sample"]

# The default package index serves torch with CUDA; `--build-arg TORCH_INDEX=URL` names an index of CPU wheels instead.
FROM base AS cpu
ARG TORCH_INDEX=
RUN pip install torch==2.13.0 ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} \
 && pip install -e '.[cpu]' -c constraints/core.txt
USER embedserve

FROM cpu AS eval
USER root
RUN pip install -e '.[cpu,mteb]' -c constraints/core.txt
USER embedserve

FROM base AS gpu
RUN sed '/^faiss-cpu/d' constraints/core.txt > /tmp/constraints.txt && pip install -e '.[gpu]' -c /tmp/constraints.txt
USER embedserve

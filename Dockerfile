# fanet on CPUs, docs/use.md: docker build --build-arg TORCH_INDEX=ADDRESS -t fanet .
ARG PYTHON=3.12
FROM python:${PYTHON}-slim AS build
WORKDIR /src
COPY . .
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM python:${PYTHON}-slim
# An index with builds of torch for CPUs alone, gigabytes smaller; empty: those of pip's own index.
ARG TORCH_INDEX=
COPY --from=build /wheels /wheels
RUN if [ -n "$TORCH_INDEX" ]; then pip install --no-cache-dir --index-url "$TORCH_INDEX" torch torchvision; fi
RUN pip install --no-cache-dir "$(echo /wheels/*.whl)[app,video]"
RUN useradd --create-home fanet && mkdir /data && chown fanet /data
USER fanet
WORKDIR /data
EXPOSE 7860
# Of the page; docker run --no-healthcheck for the other verbs.
HEALTHCHECK --start-period=60s CMD python -c "import urllib.request as u; u.urlopen('http://127.0.0.1:7860', timeout=5)"
ENTRYPOINT ["fanet"]
CMD ["app", "host=0.0.0.0"]

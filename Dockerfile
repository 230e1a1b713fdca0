# Agent, CNI plugin and manxctl, static; beside them the tools through which policy reaches the kernel, in versions that are
# tested. Build: docker build -t manx:0.1.0 .
FROM rust:1.90-bookworm AS build
WORKDIR /src
COPY . .
# crt-static is a flag of the whole build; with --target build scripts and macros are left alone.
RUN host=$(rustc -vV | sed -n 's/^host: //p') \
 && RUSTFLAGS="-C target-feature=+crt-static" cargo build --release --locked --target "$host" \
      --package manx-agent --bin manx-agent --bin manxctl --package manx-cni --bin manx-cni \
 && mkdir /out && cp "target/$host/release/manx-agent" "target/$host/release/manxctl" "target/$host/release/manx-cni" /out \
 && strip --strip-debug /out/*

FROM debian:bookworm-slim
# Both back ends of iptables are in the one package; which one is used is found out on the node. nft, ipset and ip are what
# `manxctl doctor` and `bundle` look with.
RUN apt-get update -q \
 && apt-get install -q -y --no-install-recommends iptables=1.8.9-2 ipset=7.17-1 iproute2=6.1.0-3 kmod=30+20221128-1 \
      nftables=1.0.6-2+deb12u2 \
 && rm -rf /var/lib/apt/lists/*
COPY --from=build /out/manx-agent /out/manxctl /usr/bin/
COPY --from=build /out/manx-cni /usr/libexec/manx/manx-cni
# What kubectl-manx runs in this container.
RUN ln -s manxctl /usr/bin/kubectl-manx
ENTRYPOINT ["manx-agent"]

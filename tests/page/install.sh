#!/usr/bin/env bash
# Chromium from Debian's packages, for the tests of the page.
set -euo pipefail
if command -v chromium >/dev/null; then exit; fi
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    echo "error: no chromium; on Debian, as root: apt-get install chromium" >&2
    exit 1
fi
echo "installing chromium ..."
apt-get update -qq
DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium >/dev/null

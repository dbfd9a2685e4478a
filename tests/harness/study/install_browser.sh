#!/bin/sh
# Install the browser that the report's page is tested in (Debian, Ubuntu); without it those tests say that they skip.
set -eu
apt-get update
apt-get install --yes --no-install-recommends chromium chromium-driver

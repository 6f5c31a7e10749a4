#!/usr/bin/env bash
# What tests need beside Python: for those in a browser Chromium, Firefox and ffprobe from Debian, and clients that others
# wrote from npm; GStreamer with its bindings for the system's Python, as one more client; for those of synthetic voices
# flite and espeak-ng. Without them those tests are skipped, and say why; as root on Debian this installs them.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

# As tests/browsing.py has them.
gstreamer=(python3-gi gir1.2-gst-plugins-bad-1.0 gstreamer1.0-plugins-bad gstreamer1.0-plugins-good gstreamer1.0-nice
    gstreamer1.0-libav)

missing=()
command -v chromium chromium-browser google-chrome >/dev/null || missing+=(chromium)
command -v firefox-esr firefox >/dev/null || missing+=(firefox-esr)
command -v ffprobe >/dev/null || missing+=(ffmpeg)
command -v npm >/dev/null || missing+=(npm)
command -v flite >/dev/null || missing+=(flite)
command -v espeak-ng >/dev/null || missing+=(espeak-ng)
if command -v dpkg-query >/dev/null; then
    for package in "${gstreamer[@]}"; do
        dpkg-query --show --showformat '${db:Status-Status}' "$package" 2>/dev/null | grep -qx installed ||
            missing+=("$package")
    done
fi
if [ "${#missing[@]}" -gt 0 ]; then
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        echo "Installing ${missing[*]} for the tests."
        apt-get update -qq
        DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
    else
        echo "The tests in a browser, with GStreamer or of voices will be skipped; they need:" \
            "sudo apt-get install ${missing[*]}" >&2
    fi
fi
if command -v npm >/dev/null; then
    npm ci --silent --ignore-scripts --no-audit --no-fund
fi

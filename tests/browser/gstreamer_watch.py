"""A WHEP client on GStreamer's webrtcbin: python3 gstreamer_watch.py URL SETUP CODEC [CODEC...]. SETUP: what its offer
says for a=setup, "actpass" as it is; with "passive" its certificate, which is of RSA, is the DTLS server's. It runs in
the system's own Python, which has GStreamer's bindings. It prints a line of JSON for all that happens, and goes at the
end of its input.
"""

import json
import sys
import threading
import urllib.request

import gi

gi.require_version("Gst", "1.0")
gi.require_version("GstWebRTC", "1.0")
gi.require_version("GstSdp", "1.0")
from gi.repository import GLib, Gst, GstSdp, GstWebRTC  # noqa: E402

Gst.init(None)
url, setup, codecs = sys.argv[1], sys.argv[2], sys.argv[3:]
CAPS = {
    "VP8": "application/x-rtp,media=video,encoding-name=VP8,payload=101,clock-rate=90000",
    "H264": "application/x-rtp,media=video,encoding-name=H264,payload=102,clock-rate=90000,"
    "packetization-mode=(string)1,profile-level-id=(string)42e01f",
    "OPUS": "application/x-rtp,media=audio,encoding-name=OPUS,payload=111,clock-rate=48000,encoding-params=(string)2",
}
DECODE = {
    "VP8": "rtpvp8depay ! vp8dec",
    "H264": "rtph264depay ! avdec_h264",
    "OPUS": "rtpopusdepay ! opusdec",
}
counts = dict.fromkeys(codecs, 0)


def tell(**told):
    print(json.dumps(told), flush=True)


pipeline = Gst.Pipeline.new()
peer = Gst.ElementFactory.make("webrtcbin")
peer.set_property("bundle-policy", GstWebRTC.WebRTCBundlePolicy.MAX_BUNDLE)
pipeline.add(peer)


def decoded(sink, *_):
    counts[sink.get_name()] += 1


def added(_, pad):
    name = pad.get_current_caps().get_structure(0).get_string("encoding-name")
    chain = Gst.parse_bin_from_description(f"{DECODE[name]} ! fakesink name={name} signal-handoffs=true", True)
    chain.get_by_name(name).connect("handoff", decoded)
    pipeline.add(chain)
    chain.sync_state_with_parent()
    pad.link(chain.get_static_pad("sink"))


def post(sdp):
    sdp = sdp.replace("a=setup:actpass", f"a=setup:{setup}")
    request = urllib.request.Request(url, sdp.encode(), {"Content-Type": "application/sdp"})
    try:
        with urllib.request.urlopen(request, timeout=10) as response:
            status, text = response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        status, text = error.code, error.read().decode()
    tell(status=status, text=text, offer=sdp)
    if status == 201:
        GLib.idle_add(answered, text)


def answered(text):
    _, message = GstSdp.SDPMessage.new_from_text(text)
    answer = GstWebRTC.WebRTCSessionDescription.new(GstWebRTC.WebRTCSDPType.ANSWER, message)
    peer.emit("set-remote-description", answer, Gst.Promise.new())


def gathered(*_):
    if peer.get_property("ice-gathering-state") == GstWebRTC.WebRTCICEGatheringState.COMPLETE:
        text = peer.get_property("local-description").sdp.as_text()
        threading.Thread(target=post, args=[text], daemon=True).start()


def state(*_):
    tell(state=peer.get_property("connection-state").value_nick)


peer.connect("pad-added", added)
peer.connect("notify::ice-gathering-state", gathered)
peer.connect("notify::connection-state", state)
for codec in codecs:
    caps = Gst.Caps.from_string(CAPS[codec])
    peer.emit("add-transceiver", GstWebRTC.WebRTCRTPTransceiverDirection.RECVONLY, caps)
pipeline.set_state(Gst.State.PLAYING)
created = Gst.Promise.new()
peer.emit("create-offer", None, created)
created.wait()
reply = created.get_reply()  # as long as it is held, so is the offer in it
offer = reply.get_value("offer")
peer.emit("set-local-description", offer, Gst.Promise.new())
loop = GLib.MainLoop()
GLib.timeout_add(200, lambda: tell(counts=counts) or True)
threading.Thread(target=lambda: (sys.stdin.read(), loop.quit()), daemon=True).start()
loop.run()
pipeline.set_state(Gst.State.NULL)

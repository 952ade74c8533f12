"""Names of cameras with a secret in them, ``SeCr3t``, in every way in which one is written."""

from __future__ import annotations

NETWORK_QUERIES = [
    f"{scheme}://127.0.0.1:9/live?{name}=SeCr3t"
    for scheme in ("rtsp", "http", "https")
    for name in ("access_token", "auth_token", "api_key", "apikey", "psw", "pwd", "sig", "session", "p", "x", "usr")
]
PASSWORDS = [
    "SeCr3t", "a/SeCr3t", "SeCr3t/b", "a?SeCr3t", "SeCr3t?b=c", "a#SeCr3t", "a SeCr3t", "SeCr3t b", "a@SeCr3t", "a:SeCr3t",
    "a%40SeCr3t", "SeCr3t@", "/SeCr3t", "a&SeCr3t", "a=SeCr3t", "SeCr3t!", "ä'SeCr3t\"", "a\\SeCr3t",
]  # fmt: skip
CREDENTIALS = [f"{scheme}://admin:{password}@127.0.0.1:9/live" for scheme in ("rtsp", "HTTPS") for password in PASSWORDS]
PIPELINES = [
    "gst:rtspsrc location=rtsp://admin:SeCr3t@127.0.0.1:9/x ! decodebin",
    "gst:rtspsrc location='rtsp://admin:a SeCr3t@127.0.0.1:9/x' ! decodebin",
    'gst:rtspsrc location="rtsp://admin:a/SeCr3t@127.0.0.1:9/x?y=SeCr3t" ! decodebin',
    'gst:rtspsrc location="rtsp://127.0.0.1:9/x?token=SeCr3t z" latency=0 ! decodebin',
    "gst:rtspsrc location=rtsp://127.0.0.1:9/x user-id=SeCr3t user-pw=SeCr3t ! decodebin",
    "gst:rtspsrc user-pw='SeCr3t ! x' ! decodebin",
    'gst:rtspsrc user-pw="a \\" SeCr3t" ! decodebin',
    'gst:rtspsrc user-pw = "SeCr3t" ! decodebin',
    'gst:souphttpsrc location=http://127.0.0.1:9/x extra-headers="headers,Authorization=(string)\\"Bearer SeCr3t\\"" ! jpegdec',
    "gst:souphttpsrc cookies=a=SeCr3t ! jpegdec",
    "gst:souphttpsrc proxy-id=me proxy-pw=SeCr3t ! jpegdec",
    "gst:srtsrc uri=srt://h:1 passphrase=SeCr3t ! decodebin",
    "gst:srtsrc uri=srt://h:1?passphrase=SeCr3t ! decodebin",
    "gst:awskvssrc access-key=SeCr3t secret-key=SeCr3t session-token=SeCr3t ! x",
    "gst:x location=admin:SeCr3t@127.0.0.1:9/x ! y",
]
OTHERS = [
    "rtsp://127.0.0.1:9/user=admin_password=SeCr3t_channel=1.sdp",
    "rtsp://127.0.0.1:9/x;token=SeCr3t",
    "http://127.0.0.1:9/x#access_token=SeCr3t",
    "http://127.0.0.1:9/x?SeCr3t",
    "http://127.0.0.1:9/x?a=1&token=SeCr3t@b",
    "http://127.0.0.1:9/x?a=SeCr3t@b/c",
    "rtsp://SeCr3t@127.0.0.1:9/x",
    "rtsp://:SeCr3t@127.0.0.1:9/x",
    "admin:SeCr3t@127.0.0.1:9/x",
    "rtsp:/admin:SeCr3t@127.0.0.1:9/x",
    "rtsp:admin:SeCr3t@127.0.0.1:9/x",
    "xyz://admin:SeCr3t@127.0.0.1:9/x",
    "test://ir?password=SeCr3t",
    "file://x.mkv?token=SeCr3t",
    "v4l2:///dev/video0?key=SeCr3t",
]
SECRET = sorted({*NETWORK_QUERIES, *CREDENTIALS, *PIPELINES, *OTHERS})

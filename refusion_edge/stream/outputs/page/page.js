// Draws the messages of /ws: a length, a JSON header, and the JPEG images that this view requested.
"use strict";

const IMAGES = { fused: ["fused"], infrared: ["ir"], side: ["ir", "vis", "fused"], blend: ["ir", "vis"], edges: ["ir", "vis"] };
const CAPTIONS = { side: "fused", blend: "infrared and visible, blended", edges: "visible, with infrared edges in orange" };
// Colors from cold to hot, at equal distances.
const PALETTES = {
  white: null,
  black: [[255, 255, 255], [0, 0, 0]],
  iron: [[0, 0, 0], [45, 0, 110], [150, 10, 140], [220, 60, 60], [250, 155, 20], [255, 230, 110], [255, 255, 245]],
  rainbow: [[0, 0, 60], [0, 60, 230], [0, 180, 200], [90, 220, 60], [250, 220, 0], [235, 60, 0], [255, 255, 255]],
};
const EDGE_TIMES_MEAN = 3; // gradients above this multiple of their mean are edges, whatever the contrast
const SILENT_MS = 3000;
const CONNECT_MS = 10000;
const NOTICE_MS = 8000;
const byId = (id) => document.getElementById(id);
const scratch = document.createElement("canvas");
const colored = document.createElement("canvas");
let table = null; // the palette at each of 256 levels
let clip = {}; // state of the recording; empty until the server has told it
let noticeTimer = 0;
let view = "fused";
let socket = null;
let newest = null;
let newestAt = 0;
let drawing = false;
let over = ""; // why the picture is not live
let ended = ""; // that the stream has ended, and why
let pictureAt = 0;
let direct = null; // the WebRTC connection that is tried or used, with its video
let directAt = 0; // when its last frame came; 0 before the first one
let carrier = "JPEG pictures"; // how the fused image comes

// WebRTC carries the fused image; what the server says of each picture, and all other images, come by the WebSocket.
async function startDirect() {
  const connection = new RTCPeerConnection();
  const video = document.createElement("video");
  const mine = direct = { connection, video, place: "" };
  video.muted = video.playsInline = true;
  connection.ontrack = (event) => { video.srcObject = new MediaStream([event.track]); video.play().catch(() => {}); };
  connection.onconnectionstatechange = () => { if (["failed", "closed"].includes(connection.connectionState)) stopDirect(mine, "it was lost"); };
  video.requestVideoFrameCallback(function frame() {
    if (direct !== mine) return;
    if (!directAt) carrier = "WebRTC";
    const isFirst = !directAt;
    directAt = Date.now();
    if (isFirst) ask();
    if (view === "fused") {
      pictureAt = directAt;
      sized(byId("fused"), { width: video.videoWidth, height: video.videoHeight }).drawImage(video, 0, 0);
    }
    video.requestVideoFrameCallback(frame);
  });
  try {
    connection.addTransceiver("video", { direction: "recvonly" });
    await connection.setLocalDescription(await connection.createOffer());
    const headers = { "Content-Type": "application/sdp" };
    const answer = await fetch("whep" + location.search, { method: "POST", headers, body: connection.localDescription.sdp });
    if (!answer.ok) throw new Error((await answer.text()).trim());
    mine.place = answer.headers.get("Location");
    await connection.setRemoteDescription({ type: "answer", sdp: await answer.text() });
    setTimeout(() => { if (!directAt) stopDirect(mine, "it did not connect"); }, CONNECT_MS);
  } catch (error) {
    stopDirect(mine, error.message);
  }
}

function stopDirect(which, reason) {
  if (direct !== which) return;
  direct = { failed: true };
  directAt = 0;
  which.connection.onconnectionstatechange = null;
  which.connection.close();
  if (which.place) fetch(which.place + location.search, { method: "DELETE" }).catch(() => {});
  carrier = `JPEG pictures, as WebRTC failed: ${reason}`;
  ask();
}

function usesDirect() { return directAt > 0 && view === "fused"; }

function connect() {
  const address = new URL("ws" + location.search, location.href.replace(/^http/, "ws"));
  socket = new WebSocket(address);
  socket.binaryType = "arraybuffer";
  socket.onopen = () => {
    showState(ended ? "ended" : "waiting for pictures", ended ? "lost" : "");
    showOver(ended || "Waiting for the first picture …");
    ask();
  };
  socket.onmessage = (event) => {
    if (typeof event.data === "string") { // the last message of a stream
      ended = `The stream has ended: ${JSON.parse(event.data).ended}.`;
      return;
    }
    newest = event.data;
    newestAt = Date.now();
    if (!usesDirect()) pictureAt = newestAt;
    ended = "";
    showOver("");
    draw();
  };
  socket.onclose = () => {
    if (direct && direct.connection) stopDirect(direct, "the stream ended");
    direct = null; // a stream that is started again may offer it anew
    showState(ended ? "ended" : "disconnected, reconnecting", "lost");
    showOver(ended || "The connection is lost.");
    setTimeout(connect, 1000); // the stream may be started again
  };
}

// A picture that is not live any more is dimmed, with the reason.
function showOver(reason) {
  over = reason;
  byId("images").classList.toggle("over", over !== "");
  byId("over").textContent = over;
  byId("snapshot").disabled = over !== ""; // the file's name states a time
}

function checkAge() {
  // A page in the background is given no frames.
  if (document.visibilityState === "visible" && usesDirect() && newestAt > directAt && Date.now() - directAt > SILENT_MS) stopDirect(direct, "it stopped");
  if (pictureAt && !over && Date.now() - pictureAt > SILENT_MS) showOver("No new picture arrives.");
}

function ask() {
  if (socket.readyState === WebSocket.OPEN) socket.send(JSON.stringify({ images: usesDirect() ? [] : IMAGES[view] }));
}

async function draw() {
  if (drawing) return; // the newest message waits; older ones are skipped
  drawing = true;
  while (newest) {
    const message = newest;
    newest = null;
    const length = new DataView(message).getUint32(0, true);
    const header = JSON.parse(new TextDecoder().decode(new Uint8Array(message, 4, length)));
    const images = {};
    let at = 4 + length;
    for (const name of Object.keys(header.images).sort((a, b) => order(a) - order(b))) {
      const bytes = new Uint8Array(message, at, header.images[name]);
      images[name] = await createImageBitmap(new Blob([bytes], { type: "image/jpeg" }));
      at += header.images[name];
    }
    paint(header, images);
    showHeader(header);
    Object.values(images).forEach((image) => image.close());
  }
  drawing = false;
}

function order(name) { return ["fused", "ir", "vis"].indexOf(name); }

function sized(canvas, image) {
  if (canvas.width !== image.width || canvas.height !== image.height) {
    canvas.width = image.width;
    canvas.height = image.height;
  }
  return canvas.getContext("2d", { willReadFrequently: canvas === scratch || canvas === colored });
}

function paint(header, images) {
  if (view === "fused" || view === "infrared" || view === "side") {
    for (const name of IMAGES[view]) {
      const canvas = byId(name);
      if (usesDirect()) continue; // drawn as its frames come
      if (images[name]) sized(canvas, images[name]).drawImage(name === "ir" ? inColor(images[name]) : images[name], 0, 0);
      else canvas.getContext("2d").clearRect(0, 0, canvas.width, canvas.height); // never show the last image of a lost camera as live
    }
    return;
  }
  const ground = images.vis || images.ir;
  if (!ground) return;
  const context = sized(byId("fused"), ground);
  context.globalAlpha = 1;
  const below = view === "blend" && images.ir ? inColor(images.ir) : ground;
  context.drawImage(below, 0, 0, ground.width, ground.height);
  if (view === "blend" && images.vis) {
    context.globalAlpha = byId("slider").value / 100;
    context.drawImage(images.vis, 0, 0);
    context.globalAlpha = 1;
  }
  if (view === "edges" && images.ir) drawEdges(context, images.ir);
}

// The infrared image in the colors of the palette.
function inColor(image) {
  if (!table) return image;
  const context = sized(colored, image);
  context.drawImage(image, 0, 0);
  const data = context.getImageData(0, 0, image.width, image.height);
  const words = new Uint32Array(data.data.buffer);
  for (let at = 0; at < words.length; at++) words[at] = table[words[at] & 255];
  context.putImageData(data, 0, 0);
  return colored;
}

function choosePalette(name) {
  const stops = PALETTES[name];
  table = stops && Uint32Array.from({ length: 256 }, (_, level) => {
    const place = level / 255 * (stops.length - 1);
    const first = Math.min(Math.floor(place), stops.length - 2);
    const [red, green, blue] = stops[first].map((value, index) => Math.round(value + (place - first) * (stops[first + 1][index] - value)));
    return (255 << 24 | blue << 16 | green << 8 | red) >>> 0; // pixels are little-endian
  });
}

function drawEdges(context, image) {
  const source = sized(scratch, image);
  source.drawImage(image, 0, 0);
  const { width, height } = image;
  const pixels = source.getImageData(0, 0, width, height).data;
  const target = context.getImageData(0, 0, width, height);
  const level = (x, y) => pixels[4 * (y * width + x)];
  const strength = new Float32Array(width * height);
  let sum = 0;
  for (let y = 1; y < height - 1; y++) {
    for (let x = 1; x < width - 1; x++) {
      const dx = level(x + 1, y - 1) + 2 * level(x + 1, y) + level(x + 1, y + 1) - level(x - 1, y - 1) - 2 * level(x - 1, y) - level(x - 1, y + 1);
      const dy = level(x - 1, y + 1) + 2 * level(x, y + 1) + level(x + 1, y + 1) - level(x - 1, y - 1) - 2 * level(x, y - 1) - level(x + 1, y - 1);
      strength[y * width + x] = Math.hypot(dx, dy);
      sum += strength[y * width + x];
    }
  }
  const threshold = EDGE_TIMES_MEAN * sum / strength.length;
  strength.forEach((value, at) => { if (value > threshold) target.data.set([255, 140, 0, 255], 4 * at); });
  context.putImageData(target, 0, 0);
}

function showHeader(header) {
  const alone = header.mode !== "fused";
  showState(alone ? header.mode : "live", alone ? "alone" : "live");
  byId("marks").textContent = header.marks.join(", ");
  byId("marks").hidden = header.marks.length === 0;
  showControls(header);
  if (header.whep && !direct && window.RTCPeerConnection && HTMLVideoElement.prototype.requestVideoFrameCallback) startDirect();
  const figures = header.figures;
  const number = (value, digits, unit) => (value === null || value === undefined ? "–" : value.toFixed(digits) + " " + unit);
  const rows = [["picture", `${header.height} × ${header.width}, number ${header.number}`]];
  if (figures.cameras) {
    rows.push(["pictures per second", number(figures.rate_hz, 1, "")]);
    rows.push(["delay", `${number(figures.age.p50_ms, 0, "ms")}, at most ${number(figures.age.p99_ms, 0, "ms")}`, "median and 99th percentile, from capture to this server"]);
    rows.push(["network", number(figures.infer_ms, 1, "ms"), "median time for a picture"]);
    rows.push(["between the cameras", number(header.skew_ms, 1, "ms"), "time from the infrared to the visible frame of this picture"]);
    rows.push(["shift by motion", number(figures.misregistration_px, 1, "pixels"), "95th percentile of how far the scene moves between both frames"]);
    if (figures.refined_px !== null) rows.push(["alignment corrected by", number(figures.refined_px, 1, "pixels")]);
    rows.push(["skipped", `${figures.not_shown} pictures`]);
    for (const [side, camera] of Object.entries(figures.cameras)) {
      const faults = [camera.dropped && `${camera.dropped} dropped`, camera.freezes && `frozen ${camera.freezes} times`, camera.state !== "running" && camera.state];
      rows.push([{ ir: "infrared camera", vis: "visible camera" }[side], [`${number(camera.rate_hz, 1, "per second")}`, ...faults].filter(Boolean).join(", ")]);
    }
    const { temperature_celsius: temperature, power_watts: power } = figures.device;
    if (temperature) rows.push(["temperature", `${temperature[1].toFixed(0)} °C (${temperature[0]})`, "the hottest sensor of the device"]);
    if (power) rows.push(["power", `${power[1].toFixed(1)} W (${power[0]})`, "the largest that the device measures"]);
    rows.push(["sent as", carrier]);
    rows.push(["watching", figures.viewers]);
  }
  byId("figures").replaceChildren(...rows.map(([name, value, title]) => {
    const row = document.createElement("div");
    const term = document.createElement("dt");
    const text = document.createElement("dd");
    term.textContent = name;
    text.textContent = value;
    if (title) row.title = title;
    row.append(term, text);
    return row;
  }));
}

// What viewers can change, as the server reports it.
function showControls(state) {
  if (document.activeElement !== byId("polarity")) byId("polarity").value = state.polarity;
  // What failed before this viewer came is no news.
  if (clip.problem !== undefined && state.clip.problem && state.clip.problem !== clip.problem) showNotice(`The recording has ended: ${state.clip.problem}.`);
  clip = state.clip;
  const seconds = Math.floor(clip.seconds);
  byId("record").textContent = clip.file ? `Stop (${Math.floor(seconds / 60)}:${String(seconds % 60).padStart(2, "0")})` : "Record";
  byId("record").setAttribute("aria-pressed", Boolean(clip.file));
}

async function change(request) {
  const body = JSON.stringify(request);
  try {
    const answer = await fetch("control" + location.search, { method: "POST", headers: { "Content-Type": "application/json" }, body });
    if (!answer.ok) showNotice((await answer.text()).trim());
    else showControls(await answer.json());
    return answer.ok;
  } catch {
    showNotice("The stream does not answer.");
    return false;
  }
}

async function toggleRecording() {
  const file = clip.file;
  byId("record").disabled = true;
  if (await change({ record: !file }) && !clip.problem) showNotice(file ? `Saved ${file} on the device.` : `Recording ${clip.file} on the device.`);
  byId("record").disabled = false;
}

function showNotice(text) {
  byId("notice").textContent = text.charAt(0).toUpperCase() + text.slice(1);
  byId("notice").hidden = false;
  clearTimeout(noticeTimer);
  noticeTimer = setTimeout(() => { byId("notice").hidden = true; }, NOTICE_MS);
}

// Saves what the view shows as one file on the machine of the viewer.
function savePicture() {
  const shown = [...document.querySelectorAll("#images canvas")].filter((canvas) => canvas.getClientRects().length > 0);
  const whole = document.createElement("canvas");
  whole.width = shown.reduce((sum, canvas) => sum + canvas.width, 0);
  whole.height = Math.max(...shown.map((canvas) => canvas.height));
  let left = 0;
  for (const canvas of shown) {
    whole.getContext("2d").drawImage(canvas, left, 0);
    left += canvas.width;
  }
  const time = new Date(pictureAt - new Date(pictureAt).getTimezoneOffset() * 60000).toISOString().slice(0, 19).replace(/[-:]/g, "").replace("T", "-");
  whole.toBlob((blob) => {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(blob);
    link.download = `${view}-${time}.png`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60000);
  }, "image/png");
}

function toggleFullscreen() {
  if (document.fullscreenElement) document.exitFullscreen();
  else if (document.fullscreenEnabled) byId("stage").requestFullscreen();
  else document.body.classList.toggle("large"); // phones on which only videos can fill the screen
}

function showState(text, kind) {
  byId("state").textContent = text;
  byId("state").dataset.kind = kind;
}

function choose(name) {
  view = name;
  byId("images").dataset.view = name;
  byId("caption").textContent = CAPTIONS[name] || "";
  byId("blend").hidden = name !== "blend";
  document.querySelectorAll("button[data-view]").forEach((button) => button.setAttribute("aria-pressed", button.dataset.view === name));
  history.replaceState(null, "", location.pathname + location.search + "#" + name);
  ask();
}

document.querySelectorAll("button[data-view]").forEach((button) => button.addEventListener("click", () => choose(button.dataset.view)));
document.addEventListener("visibilitychange", () => { if (directAt) directAt = Date.now(); });
document.addEventListener("keydown", (event) => {
  if (event.target !== document.body && event.target.tagName !== "BUTTON" || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.repeat) return; // a key that is held down
  const key = event.key.toLowerCase(); // with caps lock, too
  const name = Object.keys(IMAGES)[Number(key) - 1];
  if (name) choose(name);
  else if (key === "f") toggleFullscreen();
  else if (key === "s" && !byId("snapshot").disabled) savePicture();
});
byId("palette").addEventListener("change", (event) => choosePalette(event.target.value));
byId("polarity").addEventListener("change", (event) => change({ polarity: event.target.value }));
byId("snapshot").addEventListener("click", savePicture);
byId("record").addEventListener("click", toggleRecording);
byId("fullscreen").addEventListener("click", toggleFullscreen);
byId("stage").addEventListener("click", () => document.body.classList.remove("large"));
if (matchMedia("(max-width: 40rem), (max-height: 32rem)").matches) byId("more").open = false;
setInterval(checkAge, 500);
connect();
if (location.hash.slice(1) in IMAGES) choose(location.hash.slice(1));

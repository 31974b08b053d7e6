//! The page in a real browser, where there is one: it plays, scrubs, turns, compares.
#![allow(clippy::unwrap_used, reason = "functions that tests call")]

use mamba_motion::dataset::{MotionData, SourceConfig};
use mamba_motion::features::to_poses;
use mamba_motion::skeleton::Pose;
use mamba_motion::viewer::{self, Named};
use serde_json::Value;
use std::path::PathBuf;
use std::process::Command;

/// Drives the page by its own elements and writes what it finds into the document.
const DRIVER: &str = r#"<script>
const found = {}, pixels = () => {
  draw();
  const { data, width, height } = pen.getImageData(0, 0, canvas.width, canvas.height);
  let ink = 0, sum = 0;
  for (let i = 0; i < data.length; i += 4) if (data[i + 3]) { ink++; sum = (sum * 31 + data[i] + 7 * i) % 1000003; }
  return { ink, sum, size: width * height };
};
const send = (target, type, x, y) => target.dispatchEvent(new PointerEvent(type, { clientX: x, clientY: y, pointerId: 1, bubbles: true }));
canvas.setPointerCapture = () => {};
window.onerror = message => { found.error = String(message); };
setTimeout(() => {
  // Half a second of the browser's frames, told by hand: headless ones come when they like.
  view.frame = 0; before = 0; tick(500); found.played = view.frame;
  if (view.playing) play.click();
  found.options = [...first.options].map(o => o.text);
  scrub.value = 0; scrub.oninput(); found.start = pixels();
  scrub.value = 30; scrub.oninput(); found.later = pixels();
  found.time = time.textContent;
  send(canvas, "pointerdown", 200, 200); send(canvas, "pointermove", 320, 220); send(canvas, "pointerup", 320, 220);
  found.turned = pixels();
  canvas.dispatchEvent(new WheelEvent("wheel", { deltaY: 400, cancelable: true })); found.far = pixels();
  second.value = -1; second.onchange(); found.alone = pixels();
  view.frame = 5; window.dispatchEvent(new KeyboardEvent("keydown", { code: "ArrowRight" })); found.frame = view.frame;
  const distance = clips[2].joints.map((x, i) => Math.abs(x - clips[0].joints[i] - (i % 3 ? 0 : 500)));
  found.apart = Math.max(...distance);
  document.title = JSON.stringify(found);
}, 100);
</script></body>"#;

/// A browser of the Chromium family, if one is installed.
fn browser() -> Option<PathBuf> {
    let names = ["chromium", "chromium-browser", "google-chrome", "chrome"];
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).flat_map(|dir| names.map(|name| dir.join(name))).find(|file| file.is_file())
}

#[test]
fn the_page_plays_scrubs_turns_and_compares_in_a_browser() {
    let Some(browser) = browser() else {
        return eprintln!("skipped: no Chromium is installed");
    };
    let data = MotionData::bundled(&SourceConfig { mirror: false, ..SourceConfig::standard() }).unwrap();
    let poses = |name: &str| to_poses(&data.clips.iter().find(|clip| clip.name == name).unwrap().frames);
    let (walk, kick) = (poses("walk"), poses("kick"));
    let far: Vec<Pose> = walk.iter().map(|pose| pose.map(|[x, y, z]| [x + 500.0, y, z])).collect();
    let named = [("walk", &walk), ("kick", &kick), ("far", &far)].map(|(name, poses)| Named { name, poses });
    let page = viewer::page(&named).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("view.html");
    std::fs::write(&file, page.replace("</body>", DRIVER)).unwrap();
    let output = Command::new(browser)
        .args(["--headless", "--no-sandbox", "--disable-gpu", "--window-size=900,700"])
        .args(["--virtual-time-budget=2000", "--dump-dom"])
        .arg(format!("--user-data-dir={}", folder.path().join("profile").display()))
        .arg(format!("file://{}", file.display()))
        .output()
        .unwrap();
    let dom = String::from_utf8_lossy(&output.stdout);
    let title =
        dom.split("<title>").nth(1).and_then(|rest| rest.split("</title>").next()).unwrap_or_default();
    let found: Value = serde_json::from_str(title)
        .unwrap_or_else(|_| panic!("{title:?}: {}", String::from_utf8_lossy(&output.stderr)));
    assert!(found["error"].is_null(), "{found}");
    assert_eq!(
        (&found["played"], &found["options"]),
        (&Value::from(10), &serde_json::json!(["walk", "kick", "far"]))
    );
    let picture = |name: &str| (found[name]["ink"].as_f64().unwrap(), found[name]["sum"].as_f64().unwrap());
    let size = found["start"]["size"].as_f64().unwrap();
    for name in ["start", "later", "turned", "far", "alone"] {
        let (ink, _) = picture(name);
        assert!(ink > 0.005 * size && ink < 0.6 * size, "{name} is blank or full: {found}");
    }
    let all: std::collections::BTreeSet<u64> =
        ["start", "later", "turned", "far", "alone"].iter().map(|name| picture(name).1 as u64).collect();
    assert_eq!(all.len(), 5, "each of them changes the picture: {found}");
    assert!(found["time"].as_str().unwrap().starts_with("1.50 / "), "{found}");
    assert_eq!(found["frame"], 6);
    assert!(found["apart"].as_f64().unwrap() < 1e-3, "half a kilometre away a person is as at home: {found}");
}

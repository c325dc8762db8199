//! A Chromium without a window, and what it says of a page: spoken to over a pipe by the DevTools
//! protocol (<https://chromedevtools.github.io/devtools-protocol/>), JSON objects with a zero byte
//! behind each. No port is opened, and no library is needed.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use tempfile::TempDir;

/// How long the browser may take for anything; it starts slowly on a busy machine.
const ANSWER_MAX: Duration = Duration::from_secs(60);

/// The key Tab's number among keys.
const TAB_CODE: u32 = 9;

/// The browser's flags: no sandbox, since tests may run as root, and nothing that talks to anyone.
const FLAGS: [&str; 12] = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-extensions",
    "--hide-scrollbars",
    "--remote-debugging-pipe",
];

/// A running browser with one page. It ends with this value.
pub struct Browser {
    process: Child,
    input: ChildStdin,
    messages: Receiver<Value>,
    session: String,
    next: u64,
    events: Vec<Value>,
    _profile: TempDir,
}

/// How a page is shown.
#[derive(Clone, Copy, Debug)]
pub struct Look {
    /// The window's width in pixels.
    pub width: u32,
    /// Whether the viewer likes it dark.
    pub dark: bool,
}

/// The Chromium that is here; says so if there is none.
pub fn chromium() -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    let names = ["chromium", "chromium-browser", "google-chrome"];
    let found = std::env::split_paths(&path)
        .flat_map(|folder| names.map(|name| folder.join(name)))
        .find(|program| program.is_file());
    if found.is_none() {
        println!("skipped: there is no Chromium to look at pages with");
    }
    found
}

impl Browser {
    /// Starts the browser, with an empty page.
    ///
    /// # Errors
    ///
    /// When it does not start.
    pub fn start(program: &Path) -> Result<Self> {
        let profile = tempfile::Builder::new()
            .prefix("dunlin-browser-")
            .tempdir()?;
        // It reads commands from descriptor 3 and answers on 4: here its standard streams.
        let mut process = Command::new("sh")
            .args(["-c", "exec \"$@\" 3<&0 4>&1 </dev/null >/dev/null", "sh"])
            .arg(program)
            .args(FLAGS)
            .arg(format!("--user-data-dir={}", profile.path().display()))
            .arg("about:blank")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .context("the browser can't start")?;
        let input = process.stdin.take().context("no pipe to the browser")?;
        let output = process.stdout.take().context("no pipe from the browser")?;
        let (sender, messages) = channel();
        std::thread::spawn(move || {
            let mut output = BufReader::new(output);
            loop {
                let mut message = Vec::new();
                match output.read_until(0, &mut message) {
                    Ok(length) if length > 0 => {}
                    _ => return,
                }
                message.pop();
                let Ok(message) = serde_json::from_slice(&message) else {
                    return;
                };
                if sender.send(message).is_err() {
                    return;
                }
            }
        });
        let mut browser = Self {
            process,
            input,
            messages,
            session: String::new(),
            next: 0,
            events: Vec::new(),
            _profile: profile,
        };
        browser.open_page()?;
        Ok(browser)
    }

    fn open_page(&mut self) -> Result<()> {
        let target = self.ask("Target.createTarget", json!({"url": "about:blank"}))?;
        let attach = json!({"targetId": target["targetId"], "flatten": true});
        let attached = self.ask("Target.attachToTarget", attach)?;
        let session = attached["sessionId"].as_str().context("no session")?;
        self.session = session.to_owned();
        for domain in ["Page", "Runtime", "Log", "Network"] {
            self.ask(&format!("{domain}.enable"), json!({}))?;
        }
        // Without a window nobody looks at the page, and keys would go nowhere.
        let focus = json!({"enabled": true});
        self.ask("Emulation.setFocusEmulationEnabled", focus)?;
        Ok(())
    }

    /// Opens a page, and waits until it is loaded.
    ///
    /// # Errors
    ///
    /// When it does not load.
    pub fn open(&mut self, url: &str, look: Look) -> Result<()> {
        let scheme = if look.dark { "dark" } else { "light" };
        let features = json!([{"name": "prefers-color-scheme", "value": scheme}]);
        self.ask("Emulation.setEmulatedMedia", json!({"features": features}))?;
        let metrics = json!({
            "width": look.width,
            "height": 900,
            "deviceScaleFactor": 1,
            "mobile": look.width < 800,
        });
        self.ask("Emulation.setDeviceMetricsOverride", metrics)?;
        self.events.clear();
        let opened = self.ask("Page.navigate", json!({"url": url}))?;
        if let Some(error) = opened.get("errorText") {
            bail!("{url}: {error}");
        }
        let end = Instant::now() + ANSWER_MAX;
        while !self.has_event("Page.loadEventFired") {
            let message = self.next_message(end)?;
            self.events.push(message);
        }
        Ok(())
    }

    /// The value of a JavaScript expression in the page.
    ///
    /// # Errors
    ///
    /// When it throws.
    pub fn evaluate(&mut self, expression: &str) -> Result<Value> {
        let parameters = json!({"expression": expression, "returnByValue": true});
        let mut result = self.ask("Runtime.evaluate", parameters)?;
        if let Some(exception) = result.get("exceptionDetails") {
            bail!("{expression}: {exception}");
        }
        Ok(result["result"]["value"].take())
    }

    /// Presses the key that goes on to whatever takes keys next.
    ///
    /// # Errors
    ///
    /// When the browser does not take it.
    pub fn press_tab(&mut self) -> Result<()> {
        for kind in ["rawKeyDown", "keyUp"] {
            let key = json!({
                "type": kind,
                "key": "Tab",
                "code": "Tab",
                "windowsVirtualKeyCode": TAB_CODE,
                "nativeVirtualKeyCode": TAB_CODE,
            });
            self.ask("Input.dispatchKeyEvent", key)?;
        }
        Ok(())
    }

    /// A picture of the whole page, as PNG.
    ///
    /// # Errors
    ///
    /// When none is made.
    pub fn picture(&mut self) -> Result<Vec<u8>> {
        let parameters = json!({"captureBeyondViewport": true, "format": "png"});
        let picture = self.ask("Page.captureScreenshot", parameters)?;
        let data = picture["data"].as_str().context("no picture")?;
        decoded(data)
    }

    /// Everything that the page asked for since it was opened, by address.
    pub fn requests(&self) -> Vec<String> {
        let requests = self.events_named("Network.requestWillBeSent");
        requests
            .filter_map(|event| event["params"]["request"]["url"].as_str())
            .map(str::to_owned)
            .collect()
    }

    /// Everything that was complained about since the page was opened.
    pub fn complaints(&self) -> Vec<String> {
        let names = [
            "Runtime.consoleAPICalled",
            "Runtime.exceptionThrown",
            "Log.entryAdded",
        ];
        let complaints = names.iter().flat_map(|name| self.events_named(name));
        complaints
            .map(|event| event["params"].to_string())
            .collect()
    }

    fn has_event(&self, name: &str) -> bool {
        self.events_named(name).next().is_some()
    }

    fn events_named<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Value> {
        self.events
            .iter()
            .filter(move |event| event["method"] == name)
    }

    fn ask(&mut self, method: &str, parameters: Value) -> Result<Value> {
        self.next += 1;
        let mut message = json!({"id": self.next, "method": method, "params": parameters});
        if !self.session.is_empty() {
            message["sessionId"] = json!(self.session);
        }
        let mut line = serde_json::to_vec(&message)?;
        line.push(0);
        self.input.write_all(&line).context("the browser is gone")?;
        let end = Instant::now() + ANSWER_MAX;
        loop {
            let mut message = self.next_message(end).with_context(|| method.to_owned())?;
            if message["id"] != self.next {
                self.events.push(message);
                continue;
            }
            if let Some(error) = message.get("error") {
                bail!("{method}: {error}");
            }
            return Ok(message["result"].take());
        }
    }

    fn next_message(&self, end: Instant) -> Result<Value> {
        let left = end.saturating_duration_since(Instant::now());
        let message = self.messages.recv_timeout(left);
        message.context("the browser does not answer")
    }
}

/// What stands in base 64 (RFC 4648).
fn decoded(text: &str) -> Result<Vec<u8>> {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut bytes = Vec::with_capacity(text.len() / 4 * 3);
    let (mut bits, mut count) = (0_u32, 0);
    for letter in text.bytes().filter(|letter| *letter != b'=') {
        let place = LETTERS.iter().position(|known| *known == letter);
        bits = bits << 6 | place.context("the picture is not base 64")? as u32;
        count += 6;
        if count >= 8 {
            count -= 8;
            bytes.push((bits >> count) as u8);
        }
    }
    Ok(bytes)
}

impl Drop for Browser {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

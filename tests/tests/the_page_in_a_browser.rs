//! The pages of a move and of a bench, in a browser: they ask for nothing, complain of nothing, fit a
//! telephone, need no mouse, and their figures are the report's and the results'. With `DUNLIN_PICTURES=FOLDER` it leaves pictures there.

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use dunlin_tests::browser::{Browser, Look, chromium};
use dunlin_tests::site::Site;
use serde_json::{Value, json};

const LOOKS: [Look; 4] = [
    Look {
        width: 1280,
        dark: false,
    },
    Look {
        width: 1280,
        dark: true,
    },
    Look {
        width: 400,
        dark: false,
    },
    Look {
        width: 400,
        dark: true,
    },
];

/// What is asked of the page. No script of its own runs: this is the tester's.
const QUESTIONS: &str = r#"(() => {
    const all = (selector, root = document) => [...root.querySelectorAll(selector)];
    all('details').forEach(details => { details.open = true; });
    const wide = all('body *').filter(element => {
        const box = element.getBoundingClientRect();
        return box.width > 0 && (box.right > innerWidth + 0.5 || box.left < -0.5)
            && !element.closest('.skip, .unseen, thead, svg');
    });
    const luminance = colour => {
        const parts = colour.match(/[\d.]+/g).slice(0, 3).map(part => {
            const share = part / 255;
            return share <= 0.04045 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
        });
        return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2];
    };
    const behind = element => {
        for (; element; element = element.parentElement) {
            const colour = getComputedStyle(element).backgroundColor;
            if (colour !== 'rgba(0, 0, 0, 0)') return colour;
        }
        return 'rgb(255, 255, 255)';
    };
    const pale = all('body *').filter(element =>
        [...element.childNodes].some(node => node.nodeType === 3 && node.data.trim())
        && !element.closest('script, svg')
    ).filter(element => {
        const pair = [luminance(getComputedStyle(element).color), luminance(behind(element))];
        return (Math.max(...pair) + 0.05) / (Math.min(...pair) + 0.05) < 4.5;
    });
    return {
        figures: all('data').map(data => [data.dataset.from, data.value, data.textContent]),
        report: JSON.parse(document.querySelector('script[type="application/json"]').textContent),
        overflow: document.documentElement.scrollWidth - innerWidth,
        wide: wide.map(element => element.outerHTML.slice(0, 200)),
        pale: pale.map(element => element.outerHTML.slice(0, 200)),
        headings: all('h1').length,
        landmarks: ['header', 'nav', 'main', 'footer'].filter(name => all(name).length !== 1),
        unnamed: all('table').filter(table => !table.caption || !table.caption.textContent.trim()).length,
        rows: all('tbody tr').filter(row => !row.querySelector('th[scope=row]')).length,
        loud: all('svg').filter(svg => svg.getAttribute('aria-hidden') !== 'true').length,
        links: all('nav a').filter(link => !document.getElementById(link.hash.slice(1))).length,
        sections: all('section').map(section => section.id),
        parts: all('#pause tbody tr').map(row => [
            row.querySelector('th').textContent,
            all('data', row).map(data => data.dataset.from),
        ]),
    };
})()"#;

/// Where the page has its focus, and whether that is to be seen.
const FOCUS: &str = r#"(() => {
    const stops = [...document.querySelectorAll('a[href], summary')];
    const element = document.activeElement;
    const style = getComputedStyle(element);
    const box = element.getBoundingClientRect();
    return {
        stops: stops.length,
        place: stops.indexOf(element),
        is_seen: style.outlineStyle !== 'none' && parseFloat(style.outlineWidth) >= 2
            && box.width > 0 && box.height > 0 && box.left >= 0 && box.right <= innerWidth + 0.5,
        what: element.outerHTML.slice(0, 200),
    };
})()"#;

/// The sections of a move's page, in order, and which of them a report without `telemetry` lacks.
const SECTIONS_OF_A_MOVE: [(&str, bool); 9] = [
    ("pause", false),
    ("rounds", false),
    ("time", true),
    ("time-in-the-pause", true),
    ("latencies", true),
    ("memory", false),
    ("guest", false),
    ("hosts", false),
    ("counters", true),
];

/// The sections of a bench's page, in order.
const SECTIONS_OF_A_BENCH: [&str; 6] = [
    "verdicts",
    "goodput",
    "blackout",
    "cpu",
    "references",
    "conditions",
];

/// Stops that are neither links nor summaries: what scrolls takes keys too.
const OTHER_STOPS_MAX: u64 = 16;

#[test]
fn the_page_of_a_move_shows_its_report_and_nothing_else() -> Result<()> {
    let Some(program) = chromium() else {
        return Ok(());
    };
    let site = Site::new()?;
    let page = site.directory().join("move.html");
    let file = site.directory().join("move.json");
    let demo = [
        "demo",
        "--memory",
        "256MiB",
        "--vcpus",
        "2",
        "--workload",
        "hot=32MiB",
        "--quiet",
        "--html",
        &page.to_string_lossy(),
        "--json",
        &file.to_string_lossy(),
    ];
    site.run(&demo)?.expect_code(0)?;
    let report: Value = serde_json::from_slice(&std::fs::read(&file)?)?;
    let mut browser = Browser::start(&program)?;
    for look in LOOKS {
        let answers = open(&mut browser, &page, look)?;
        let name = format!("move-{}-{}.png", look.width, scheme(look));
        keep_picture(&mut browser, &name)?;
        check(&browser, &answers, &report).with_context(|| format!("{look:?}"))?;
        check_sections_of_a_move(&answers, &report)?;
        check_parts(&answers, &report)?;
        check_keys(&mut browser, &page, look)?;
    }
    Ok(())
}

#[test]
fn the_page_of_a_bench_shows_its_results_and_nothing_else() -> Result<()> {
    let Some(program) = chromium() else {
        return Ok(());
    };
    let site = Site::new()?;
    let page = site.directory().join("bench.html");
    let file = site.directory().join("bench.json");
    let bench = [
        "bench",
        "--transports",
        "tcp,tcp-writev",
        "--lanes",
        "1,2",
        "--memory",
        "64MiB",
        "--dirty-rate",
        "0,16MiB/s",
        "--guest",
        "process",
        "--references",
        "memcpy,iperf3,ib_write_bw",
        "--repeat",
        "1",
        "--warm-up",
        "0",
        "--quiet",
        "--html",
        &page.to_string_lossy(),
        "--json",
        &file.to_string_lossy(),
    ];
    site.run(&bench)?.expect_code(0)?;
    let results: Value = serde_json::from_slice(&std::fs::read(&file)?)?;
    let mut browser = Browser::start(&program)?;
    for look in LOOKS {
        let answers = open(&mut browser, &page, look)?;
        let name = format!("bench-{}-{}.png", look.width, scheme(look));
        keep_picture(&mut browser, &name)?;
        check(&browser, &answers, &results).with_context(|| format!("{look:?}"))?;
        ensure!(
            answers["sections"] == json!(SECTIONS_OF_A_BENCH),
            "sections: {}",
            answers["sections"]
        );
        check_verdicts_and_references(&answers, &results)?;
        check_keys(&mut browser, &page, look)?;
        // Goodput, blackout and processor time: against lanes for each dirty rate, and against
        // dirty rate for each number of lanes; a run is a dot in both, and in its row.
        let drawn = browser.evaluate(
            "[document.querySelectorAll('figure.chart').length, \
              document.querySelectorAll('.plot circle').length, \
              document.querySelectorAll('.strip circle').length]",
        )?;
        ensure!(drawn[0] == 3 * (2 + 2), "charts: {drawn}");
        ensure!(drawn[1] == 3 * 2 * 8, "dots in charts: {drawn}");
        ensure!(drawn[2].as_u64() >= Some(3 * 8), "dots in rows: {drawn}");
    }
    Ok(())
}

#[test]
fn a_name_can_not_become_a_script() -> Result<()> {
    let Some(program) = chromium() else {
        return Ok(());
    };
    let hostile = "</script><script>document.title = 'taken'</script><img src=x onerror=\"document.title='taken'\">";
    let site = Site::new()?;
    let file = site.directory().join("move.json");
    let page = site.directory().join("move.html");
    let demo = [
        "demo",
        "--memory",
        "64MiB",
        "--workload",
        "hot=8MiB",
        "--guest",
        "process",
        "--quiet",
        "--json",
        &file.to_string_lossy(),
    ];
    site.run(&demo)?.expect_code(0)?;
    let mut report: Value = serde_json::from_slice(&std::fs::read(&file)?)?;
    report["guest"]["name"] = hostile.into();
    report["guest"]["kind"] = hostile.into();
    report["hosts"]["destination"]["cpu"] = hostile.into();
    report["blackout"]["parts"][0]["name"] = hostile.into();
    report["reason"] = hostile.into();
    std::fs::write(&file, serde_json::to_vec(&report)?)?;
    let file = file.to_string_lossy();
    let arguments = ["report", &*file, "--html", &page.to_string_lossy()];
    site.run(&arguments)?.expect_code(0)?;
    let mut browser = Browser::start(&program)?;
    let look = Look {
        width: 400,
        dark: false,
    };
    let answers = open(&mut browser, &page, look)?;
    check(&browser, &answers, &report)?;
    check_parts(&answers, &report)?;
    let title = browser.evaluate("document.title")?;
    let title = title.as_str().context("no title")?;
    ensure!(title.ends_with("· Dunlin"), "{title}");
    let scripts = browser.evaluate("document.querySelectorAll('script, img').length")?;
    ensure!(scripts == 1, "{scripts} elements of script or image");
    Ok(())
}

fn open(browser: &mut Browser, page: &Path, look: Look) -> Result<Value> {
    browser.open(&format!("file://{}", page.display()), look)?;
    browser.evaluate(QUESTIONS)
}

fn scheme(look: Look) -> &'static str {
    if look.dark { "dark" } else { "light" }
}

fn keep_picture(browser: &mut Browser, name: &str) -> Result<()> {
    let Some(folder) = std::env::var_os("DUNLIN_PICTURES") else {
        return Ok(());
    };
    let picture = browser.picture()?;
    std::fs::write(Path::new(&folder).join(name), picture)?;
    Ok(())
}

fn check(browser: &Browser, answers: &Value, report: &Value) -> Result<()> {
    let requests = browser.requests();
    let outside =
        |address: &&String| !address.starts_with("file:") && !address.starts_with("data:");
    ensure!(
        requests
            .iter()
            .filter(|address| address.starts_with("file:"))
            .count()
            == 1
            && !requests.iter().any(|address| outside(&address)),
        "it asked for {requests:?}"
    );
    let complaints = browser.complaints();
    ensure!(complaints.is_empty(), "complaints: {complaints:?}");
    ensure!(
        is_same(&answers["report"], report),
        "the data is not what was written"
    );
    for (what, none) in [
        ("wider than the window", &answers["wide"]),
        ("too pale to read", &answers["pale"]),
        ("landmarks that are not there once", &answers["landmarks"]),
    ] {
        ensure!(
            none.as_array().is_some_and(Vec::is_empty),
            "{what}: {none:#}"
        );
    }
    for (what, none) in [
        ("pixels to scroll sideways", &answers["overflow"]),
        ("tables without a caption", &answers["unnamed"]),
        ("rows without a head", &answers["rows"]),
        ("pictures that a screen reader meets", &answers["loud"]),
        ("links to nowhere", &answers["links"]),
    ] {
        ensure!(
            none.as_i64().is_some_and(|count| count <= 0),
            "{what}: {none}"
        );
    }
    ensure!(
        answers["headings"] == 1,
        "first headings: {}",
        answers["headings"]
    );
    check_figures(answers, report)
}

/// Whether two documents say the same. A browser tells 1.0 as 1.
fn is_same(left: &Value, right: &Value) -> bool {
    match (left, right) {
        (Value::Number(left), Value::Number(right)) => left.as_f64() == right.as_f64(),
        (Value::Array(left), Value::Array(right)) => {
            left.len() == right.len()
                && left
                    .iter()
                    .zip(right)
                    .all(|(left, right)| is_same(left, right))
        }
        (Value::Object(left), Value::Object(right)) => {
            left.len() == right.len()
                && left
                    .iter()
                    .all(|(name, left)| right.get(name).is_some_and(|right| is_same(left, right)))
        }
        _ => left == right,
    }
}

fn check_sections_of_a_move(answers: &Value, report: &Value) -> Result<()> {
    let is_told = report["telemetry"].is_object();
    let wanted = SECTIONS_OF_A_MOVE.iter();
    let wanted = wanted.filter(|(_, needs_telemetry)| is_told || !needs_telemetry);
    let wanted: Vec<_> = wanted.map(|(section, _)| *section).collect();
    let sections = &answers["sections"];
    ensure!(*sections == json!(wanted), "sections: {sections}");
    Ok(())
}

/// Each part of the pause that took any time has its row, with its name and its figure.
fn check_parts(answers: &Value, report: &Value) -> Result<()> {
    let parts = report["blackout"]["parts"].as_array().context("no parts")?;
    ensure!(parts.len() > 5, "only {} parts", parts.len());
    let rows = answers["parts"].as_array().context("no rows")?;
    for (place, part) in parts.iter().enumerate() {
        if part["duration_ns"] == 0 {
            continue;
        }
        let from = json!(format!("/blackout/parts/{place}/duration_ns"));
        let is_it = |row: &&Value| {
            let figures = row[1].as_array();
            figures.is_some_and(|figures| figures.contains(&from))
        };
        let row = rows.iter().find(is_it);
        let row = row.with_context(|| format!("{} is not on the page", part["name"]))?;
        ensure!(
            row[0] == part["name"],
            "{} is called {}",
            part["name"],
            row[0]
        );
    }
    Ok(())
}

/// Each verdict's ratio with its interval, and what was measured of each other program, is among the
/// figures, which are compared with the results.
fn check_verdicts_and_references(answers: &Value, results: &Value) -> Result<()> {
    let figures = answers["figures"].as_array().context("no figures")?;
    let is_there = |from: String| figures.iter().any(|figure| figure[0] == *from);
    let all = |what: &str| results[what].as_array().cloned().unwrap_or_default();
    let mut ratios = 0;
    for (place, verdict) in all("verdicts").iter().enumerate() {
        if verdict["ratio"].is_null() {
            continue;
        }
        for which in ["ratio", "low", "high"] {
            let from = format!("/verdicts/{place}/ratio/{which}");
            ensure!(is_there(from), "{which} of {verdict} is not on the page");
        }
        ratios += 1;
    }
    ensure!(ratios > 0, "no verdict has a ratio");
    let mut medians = 0;
    for (place, reference) in all("references").iter().enumerate() {
        for field in ["goodput_bytes_per_s", "latency_ns", "blackout_ns"] {
            if !reference["runs"][0][field].is_u64() {
                continue;
            }
            let from = format!("/references/{place}/runs/*/{field}");
            ensure!(is_there(from), "{field} of {reference} is not on the page");
            medians += 1;
        }
    }
    ensure!(medians > 0, "no reference has a figure");
    Ok(())
}

/// With the key Tab alone every link and every summary is reached, and the focus is seen there. The
/// page is opened anew, with its details closed.
fn check_keys(browser: &mut Browser, page: &Path, look: Look) -> Result<()> {
    browser.open(&format!("file://{}", page.display()), look)?;
    let stops = browser.evaluate(FOCUS)?["stops"].as_u64();
    let stops = stops.filter(|stops| *stops > 5).context("no links")?;
    let mut reached = vec![false; usize::try_from(stops)?];
    for _ in 0..stops + OTHER_STOPS_MAX {
        browser.press_tab()?;
        let focus = browser.evaluate(FOCUS)?;
        let place = focus["place"].as_u64().map(usize::try_from).transpose()?;
        if let Some(reached) = place.and_then(|place| reached.get_mut(place)) {
            ensure!(focus["is_seen"] == true, "the focus is not seen: {focus}");
            *reached = true;
        }
    }
    let missed: Vec<_> = reached.iter().enumerate().filter(|(_, it)| !**it).collect();
    ensure!(
        missed.is_empty(),
        "of {stops} stops not reached: {missed:?}"
    );
    Ok(())
}

fn check_figures(answers: &Value, report: &Value) -> Result<()> {
    let figures = answers["figures"].as_array().context("no figures")?;
    ensure!(figures.len() > 40, "only {} figures", figures.len());
    for figure in figures {
        let part = |place: usize| figure[place].as_str().context("no figure");
        let (from, value, text) = (part(0)?, part(1)?, part(2)?);
        let there = value_at(report, from);
        ensure!(
            there.is_some() && there == value.parse().ok(),
            "{from}: {value} on the page, {there:?} in the report"
        );
        let value: f64 = value.parse()?;
        let read = read(text, from)?;
        // Three significant digits.
        ensure!(
            (read - value).abs() <= value * 0.006,
            "{from}: '{text}' is not {value}"
        );
    }
    Ok(())
}

/// The value at a JSON pointer. One with a `*` in it is that of all elements of an array: the median of
/// their values.
fn value_at(document: &Value, from: &str) -> Option<f64> {
    let Some((array, behind)) = from.split_once("/*") else {
        return document.pointer(from).and_then(Value::as_f64);
    };
    let elements = document.pointer(array)?.as_array()?.iter();
    let values = elements.filter_map(|element| element.pointer(behind)?.as_f64());
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    let (below, above) = (
        values.get((values.len().checked_sub(1)?) / 2)?,
        values.get(values.len() / 2)?,
    );
    Some(below + (above - below) / 2.0)
}

/// The value that a person reads.
fn read(text: &str, from: &str) -> Result<f64> {
    let text = text.replace('\u{a0}', " ").replace(',', "");
    let (number, unit) = text.split_once(' ').unwrap_or((&text, ""));
    let number: f64 = number
        .parse()
        .with_context(|| format!("{from}: '{text}'"))?;
    // Pages are told as the bytes that they have.
    let per_page = if from.ends_with("_pages") {
        4096.0
    } else {
        1.0
    };
    let factor = match unit.trim_end_matches("/s") {
        "" | "ns" => return Ok(number),
        "µs" => 1e3,
        "ms" => 1e6,
        "s" => 1e9,
        "min" => 60e9,
        "B" => 1.0 / per_page,
        "KiB" => 1024.0 / per_page,
        "MiB" => 1024.0 * 1024.0 / per_page,
        "GiB" => 1024.0 * 1024.0 * 1024.0 / per_page,
        unit => bail!("{from}: no unit '{unit}'"),
    };
    Ok(number * factor)
}

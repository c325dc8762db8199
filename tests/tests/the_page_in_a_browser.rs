//! The pages of a move and of a bench, in a browser: they ask for nothing, complain of nothing, fit a
//! telephone, and their figures are the report's and the results'. With `DUNLIN_PICTURES=FOLDER` it leaves pictures there.

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use dunlin_tests::browser::{Browser, Look, chromium};
use dunlin_tests::site::Site;
use serde_json::Value;

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
    };
})()"#;

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

fn check_figures(answers: &Value, report: &Value) -> Result<()> {
    let figures = answers["figures"].as_array().context("no figures")?;
    ensure!(figures.len() > 40, "only {} figures", figures.len());
    for figure in figures {
        let part = |place: usize| figure[place].as_str().context("no figure");
        let (from, value, text) = (part(0)?, part(1)?, part(2)?);
        let there = report.pointer(from).and_then(Value::as_f64);
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

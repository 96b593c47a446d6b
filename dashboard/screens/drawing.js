// One chart: drawn once, then changed in place, so that the reader's zoom and choice of curves last.

const CONFIG = { displayModeBar: false, doubleClick: false };
const RANGE = /^([xy]axis\d*)\.range/;
const RELEASES = ["pointerup", "pointercancel", "blur"];

export default function ({ data, parentElement, setTriggerValue }) {
  if (!data.figure) return void loaded(data.library);
  const chart = (parentElement.sageschedChart ??= new Chart(parentElement));
  chart.show(data, setTriggerValue);
  return () => chart.end();
}

function loaded(path) {
  return (window.sageschedPlotly ??= new Promise((done, failed) => {
    const script = document.createElement("script");
    script.src = path;
    script.onload = () => done(window.Plotly);
    script.onerror = () => {
      delete window.sageschedPlotly; // The next drawing tries again.
      failed(new Error(`${path} cannot be fetched`));
    };
    document.head.append(script);
  }));
}

class Chart {
  constructor(parent) {
    this.parent = parent;
    this.zoom = {};
    this.frame = parent.appendChild(document.createElement("div"));
    this.frame.className = "sage-chart";
    this.frame.setAttribute("role", "figure");
    this.plot = this.frame.appendChild(document.createElement("div"));
    this.choices = this.frame.appendChild(document.createElement("div"));
    this.span = this.choice("Show this span", () => this.spread());
    this.span.title = "Take it as the time range of all pages";
    this.choice("Reset zoom", () => this.unzoom());
    this.choices.hidden = true;
    this.plot.addEventListener("pointerdown", ({ button }) => button === 0 && this.hold());
    this.widths = new ResizeObserver(() => this.figure && this.draw());
    this.widths.observe(this.frame);
  }

  choice(name, act) {
    const button = this.choices.appendChild(document.createElement("button"));
    button.textContent = name;
    button.onclick = act;
    return button;
  }

  show({ figure, label, library }, tell) {
    const { data, layout } = JSON.parse(figure);
    this.tell = tell;
    this.library = library;
    this.figure = { data, layout };
    this.frame.setAttribute("aria-label", label);
    this.frame.style.minHeight = `${layout.height}px`;
    this.draw();
  }

  // While the reader drags, a change waits: the axis would move under the pointer.
  hold() {
    this.held = true;
    const release = () => {
      for (const name of RELEASES) window.removeEventListener(name, release, true);
      setTimeout(() => {
        this.held = false;
        this.draw();
      }, 100);
    };
    for (const name of RELEASES) window.addEventListener(name, release, true);
  }

  async draw() {
    this.stale = true;
    if (this.draws) return;
    this.draws = true;
    try {
      while (this.stale) {
        this.stale = false;
        await this.once(await loaded(this.library));
      }
    } finally {
      this.draws = false;
    }
  }

  async once(plotly) {
    if (this.held || this.ended || !this.frame.clientWidth) return;
    const { data, layout } = structuredClone(this.figure);
    const shown = { ...layout, template: template(this.parent), width: this.frame.clientWidth };
    for (const [axis, range] of Object.entries(this.zoom)) shown[axis] = { ...shown[axis], range, autorange: false };
    await plotly.react(this.plot, data, shown, CONFIG);
    if (this.listens) return;
    this.listens = true;
    this.plot.on("plotly_relayout", (change) => this.keep(change));
    this.plot.on("plotly_doubleclick", () => this.unzoom());
  }

  keep(change) {
    for (const name of Object.keys(change)) {
      const [, axis] = RANGE.exec(name) ?? [];
      if (axis) this.zoom[axis] = [...this.plot.layout[axis].range];
    }
    this.choices.hidden = !Object.keys(this.zoom).length;
    this.span.hidden = !this.zoom.xaxis || this.figure.layout.xaxis.type !== "date";
  }

  spread() {
    this.tell("span", this.zoom.xaxis);
    this.unzoom();
  }

  unzoom() {
    this.zoom = {};
    this.choices.hidden = true;
    this.draw();
  }

  end() {
    this.ended = true;
    this.widths.disconnect();
    window.Plotly?.purge(this.plot);
    this.frame.remove();
    delete this.parent.sageschedChart;
  }
}

// The page's theme, as Plotly takes it.
function template(element) {
  const style = getComputedStyle(element);
  const of = (name) => style.getPropertyValue(`--st-${name}`).trim();
  const text = of("text-color");
  const [quiet, line] = [faded(text, 0.8), faded(text, 0.14)];
  const font = { color: quiet, family: of("font"), size: 12 };
  const axis = { gridcolor: line, zerolinecolor: line, tickcolor: line, automargin: true, title: { font: { size: 13 }, standoff: 14 } };
  return {
    layout: {
      font,
      colorway: of("chart-categorical-colors").split(","),
      paper_bgcolor: "rgba(0, 0, 0, 0)",
      plot_bgcolor: "rgba(0, 0, 0, 0)",
      legend: { font: { color: text }, bgcolor: "rgba(0, 0, 0, 0)" },
      xaxis: { ...axis, showgrid: false, zeroline: false },
      yaxis: axis,
      margin: { pad: 7 },
      hoverlabel: { bgcolor: of("background-color"), bordercolor: of("border-color"), font: { ...font, color: text } },
    },
  };
}

function faded(colour, opacity) {
  const parts = [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16));
  return `rgba(${parts.join(", ")}, ${opacity})`;
}

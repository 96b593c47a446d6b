// One chart: drawn once, then changed in place, so that the reader's zoom and choice of curves last.

const CONFIG = { displayModeBar: false, doubleClick: false };
const RANGE = /^([xy]axis\d*)\.(range|autorange)/;

export default function ({ data, parentElement }) {
  const library = loaded(data.library);
  if (!data.figure) return;
  const chart = (parentElement.sageschedChart ??= new Chart(parentElement, library));
  chart.show(data);
  return () => chart.end();
}

function loaded(path) {
  return (window.sageschedPlotly ??= new Promise((done, failed) => {
    const script = document.createElement("script");
    script.src = path;
    script.onload = () => done(window.Plotly);
    script.onerror = () => failed(new Error(`${path} cannot be fetched: load the page again`));
    document.head.append(script);
  }));
}

class Chart {
  constructor(parent, library) {
    this.parent = parent;
    this.library = library;
    this.zoom = {};
    this.frame = parent.appendChild(document.createElement("div"));
    this.frame.className = "sage-chart";
    this.frame.setAttribute("role", "figure");
    this.plot = this.frame.appendChild(document.createElement("div"));
    this.whole = this.frame.appendChild(document.createElement("button"));
    this.whole.textContent = "Reset zoom";
    this.whole.hidden = true;
    this.whole.onclick = () => this.unzoom();
    this.plot.addEventListener("pointerdown", () => this.hold());
    this.widths = new ResizeObserver(() => this.draw());
    this.widths.observe(this.frame);
  }

  show({ figure, label }) {
    const { data, layout } = JSON.parse(figure);
    this.figure = { data, layout };
    this.frame.setAttribute("aria-label", label);
    this.frame.style.minHeight = `${layout.height}px`;
    this.draw();
  }

  // While the reader drags, a change waits: it would take away what is being dragged.
  hold() {
    this.held = true;
    const release = () => {
      for (const end of ["pointerup", "pointercancel"]) window.removeEventListener(end, release, true);
      setTimeout(() => {
        this.held = false;
        this.draw();
      }, 100);
    };
    for (const end of ["pointerup", "pointercancel"]) window.addEventListener(end, release, true);
  }

  async draw() {
    if (this.held || !this.figure || !this.frame.clientWidth) return;
    const plotly = await this.library;
    if (this.held || this.ended) return;
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
      const [, axis, what] = RANGE.exec(name) ?? [];
      if (what === "range") this.zoom[axis] = [...this.plot.layout[axis].range];
    }
    this.whole.hidden = !Object.keys(this.zoom).length;
  }

  unzoom() {
    this.zoom = {};
    this.whole.hidden = true;
    this.draw();
  }

  async end() {
    this.ended = true;
    this.widths.disconnect();
    (await this.library).purge(this.plot);
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

// Shared by all parts: the data, elements, numbers in words, and which group is selected.
const DATA = JSON.parse(byId('data').textContent);
const GROUPS = DATA.groups, LAYERS = DATA.layers;
const SVG = 'http://www.w3.org/2000/svg';

function fill(node, props, kids) {
  for (const [key, value] of Object.entries(props || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (key.startsWith('on')) node.addEventListener(key.slice(2), value);
    else node.setAttribute(key, value === true ? '' : value);
  }
  for (const kid of kids) if (kid !== null && kid !== undefined && kid !== '') node.append(kid); // text stays text
  return node;
}
const el = (tag, props, ...kids) => fill(document.createElement(tag), props, kids);
const svg = (tag, props, ...kids) => fill(document.createElementNS(SVG, tag), props, kids);

function count(x) {
  if (x === null || x === undefined) return '–';
  if (x < 999.5) return String(Math.round(x));
  const units = ['', 'k', 'M', 'G', 'T'];
  let at = 0;
  while (x >= 999.5 && at < units.length - 1) { x /= 1000; at += 1; }
  return `${x.toFixed(x >= 99.95 ? 0 : x >= 9.995 ? 1 : 2)} ${units[at]}`;
}
const percent = (x) => `${(100 * x).toFixed(1)} %`;
const RAISED = '⁰¹²³⁴⁵⁶⁷⁸⁹';
function small(x) { // errors below 10⁻⁶ of a variance are rounding
  if (x === 0 || x >= 0.001) return x === 0 ? '0' : x.toPrecision(3);
  if (x < 1e-6) return 'below 10⁻⁶';
  const [digits, exponent] = x.toExponential(1).split('e-');
  return `${digits} × 10⁻${[...exponent].map((d) => RAISED[d]).join('')}`;
}
const left = (g) => 1 - g.removed / g.units;
function middle(text, most) { // names differ at both ends
  if (text.length <= most) return text;
  const end = Math.ceil((most - 1) / 2);
  return `${text.slice(0, most - 1 - end)}…${text.slice(text.length - end)}`;
}

GROUPS.forEach((g, n) => { g.n = n; g.writes = []; g.reads = []; });
LAYERS.forEach((layer, n) => {
  layer.n = n;
  for (const g of layer.writes) GROUPS[g].writes.push(n);
  for (const g of layer.reads) GROUPS[g].reads.push(n);
});
for (const g of GROUPS) { // where it begins, and who makes it: weights are often named by numbers
  const layers = [...g.writes, ...g.reads];
  g.first = layers.length ? Math.min(...layers) : LAYERS.length;
  g.maker = g.writes.length ? LAYERS[g.writes[0]].name : '';
}
const coupled = new Map(); // component -> groups
for (const g of GROUPS) {
  if (g.component < 0) continue;
  if (!coupled.has(g.component)) coupled.set(g.component, []);
  coupled.get(g.component).push(g);
}

const chosen = { group: null, layer: null, tell: [] };
function select(group, from) {
  chosen.group = group;
  chosen.layer = null;
  for (const tell of chosen.tell) tell(from);
}
function selectLayer(layer) {
  chosen.group = null;
  chosen.layer = layer;
  for (const tell of chosen.tell) tell('map');
}

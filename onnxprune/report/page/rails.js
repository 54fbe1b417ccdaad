// The map: layers are rows in the order of execution, each group is a line from the first layer that makes its
// channels to the last that reads them. Lines take the leftmost free lane, as in a drawing of a version history.
const MOST_ROWS = 600;
const ROW = 24, LANE = 18, PAD = 16;
const map = { zoom: 1, near: LAYERS.length > MOST_ROWS, rows: [], lanes: new Map(), width: 0, height: 0 };

const span = (g) => {
  const rows = [...g.writes, ...g.reads];
  return [Math.min(...rows), Math.max(...rows)];
};

function neighbours(g) { // the layers of a group, and the groups that these touch
  const own = new Set([...g.writes, ...g.reads]);
  const groups = new Set([g.n]);
  for (const n of own) for (const other of [...LAYERS[n].writes, ...LAYERS[n].reads]) groups.add(other);
  for (const n of groups) {
    const o = GROUPS[n];
    if (o === g || o.writes.length + o.reads.length <= 12) for (const l of [...o.writes, ...o.reads]) own.add(l);
  }
  return { own: [...own].sort((a, b) => a - b).slice(0, MOST_ROWS), groups };
}

function layout() {
  let groups = GROUPS.filter((g) => g.writes.length + g.reads.length);
  map.rows = LAYERS.map((l) => l.n);
  if (map.near && groups.length) {
    let focus = chosen.group === null ? null : GROUPS[chosen.group];
    if (!focus && chosen.layer !== null) {
      const l = LAYERS[chosen.layer];
      focus = GROUPS[[...l.writes, ...l.reads][0]] || null;
    }
    if (!focus || !(focus.writes.length + focus.reads.length)) focus = groups.reduce((a, b) => (b.macs > a.macs ? b : a));
    const near = neighbours(focus);
    map.rows = near.own;
    groups = groups.filter((g) => near.groups.has(g.n));
  }
  map.rows = map.rows.slice(0, MOST_ROWS);
  const place = new Map(map.rows.map((n, row) => [n, row]));
  const free = []; // lane -> the last row that it is taken to
  map.lanes = new Map();
  const lines = groups.map((g) => {
    const rows = [...g.writes, ...g.reads].filter((n) => place.has(n)).map((n) => place.get(n));
    return { g, from: Math.min(...rows), to: Math.max(...rows), rows };
  }).filter((l) => l.rows.length).sort((a, b) => a.from - b.from || b.to - a.to);
  for (const l of lines) {
    let lane = free.findIndex((to) => to < l.from);
    if (lane < 0) lane = free.push(0) - 1;
    free[lane] = l.to;
    map.lanes.set(l.g.n, { lane, ...l });
  }
  return { place, lanes: free.length };
}

const xOf = (lane) => PAD + lane * LANE;
const yOf = (row) => PAD + row * ROW;

function rail({ g, lane, from, to }) {
  const wide = 3 + Math.min(6, Math.log2(Math.max(g.units, 2)) / 2);
  const kept = wide * left(g);
  const [x, y1, y2] = [xOf(lane), yOf(from), yOf(to) + (from === to ? 5 : 0)];
  const text = `${g.name}: ${DATA.cut ? `${g.units - g.removed} of ${g.units} kept` : `${g.units} units`}`;
  return svg('g', { class: 'rail', 'data-g': g.n, onclick: () => select(g.n, 'map') }, svg('title', {}, text),
    svg('line', { class: 'hit', x1: x, x2: x, y1, y2 }),
    svg('line', { class: 'all', x1: x, x2: x, y1, y2, 'stroke-width': wide }),
    svg('line', { class: 'kept', x1: x - (wide - kept) / 2, x2: x - (wide - kept) / 2, y1, y2, 'stroke-width': kept }));
}

function widths(layer) {
  const [a, b] = [layer.shape, layer.left];
  const one = (i) => (a[i] === b[i] ? String(a[i]) : `${a[i]}→${b[i]}`);
  return a.map((_, i) => one(i)).join(' × ');
}

function rowOf(layer, row, labels, lanes) {
  const y = yOf(row);
  const marks = [...layer.reads.map((g) => [g, 'ring']), ...layer.writes.map((g) => [g, 'dot'])].filter(([g]) => lanes.has(g));
  const xs = marks.map(([g]) => xOf(lanes.get(g).lane));
  const idle = !layer.writes.length && !layer.reads.length;
  const name = middle(layer.name, 44);
  return svg('g', { class: 'row', 'data-l': layer.n, onclick: () => selectLayer(layer.n) },
    svg('title', {}, `${layer.name} (${layer.op})`),
    svg('rect', { class: 'row-hit', x: 0, y: y - ROW / 2, width: map.width, height: ROW }),
    xs.length ? svg('line', { class: 'link-line', x1: Math.min(...xs), x2: labels - 8, y1: y, y2: y }) : null,
    ...marks.map(([g, kind]) => svg('circle', { class: `${kind} of-${g}`, cx: xOf(lanes.get(g).lane), cy: y, r: kind === 'dot' ? 4.5 : 4 })),
    svg('text', { x: labels, y: y + 4, class: idle ? 'idle' : null }, name,
      svg('tspan', { class: 'op', dx: 10 }, layer.op), svg('tspan', { class: 'wd', dx: 10 }, idle ? 'frozen' : widths(layer))));
}

function drawMap() {
  const { place, lanes } = layout();
  const labels = PAD + lanes * LANE + 10;
  const longest = Math.max(...map.rows.map((n) => Math.min(LAYERS[n].name.length, 44) + LAYERS[n].op.length + widths(LAYERS[n]).length), 10);
  map.width = labels + longest * 7.2 + 60;
  map.height = 2 * PAD + Math.max(map.rows.length - 1, 0) * ROW;
  const box = svg('svg', { viewBox: `0 0 ${map.width} ${map.height}`, role: 'img', 'aria-label': 'Map of layers and groups' },
    ...map.rows.map((n) => rowOf(LAYERS[n], place.get(n), labels, map.lanes)),
    ...[...map.lanes.values()].map(rail));
  for (const dot of box.querySelectorAll('.dot, .ring')) { // over the lines
    const on = dot.parentNode;
    dot.dataset.l = on.dataset.l;
    box.append(dot);
  }
  byId('map-view').replaceChildren(box);
  zoomTo(map.zoom);
  const cut = map.near ? ` near the ${chosen.group === null && chosen.layer === null ? 'heaviest' : 'selected'} group` : '';
  byId('map-count').textContent = `${map.rows.length} of ${LAYERS.length} layers${cut}`;
  mark();
}

function zoomTo(zoom) {
  map.zoom = Math.min(3, Math.max(0.2, zoom));
  const box = byId('map-view').firstChild;
  box.setAttribute('width', map.width * map.zoom);
  box.setAttribute('height', map.height * map.zoom);
}

function mark() {
  const view = byId('map-view');
  const some = chosen.group !== null || chosen.layer !== null;
  view.classList.toggle('picked', some);
  const groups = new Set(chosen.group !== null ? [chosen.group] : []);
  const layers = new Set(chosen.layer !== null ? [chosen.layer] : []);
  if (chosen.group !== null) for (const n of [...GROUPS[chosen.group].writes, ...GROUPS[chosen.group].reads]) layers.add(n);
  if (chosen.layer !== null) for (const n of [...LAYERS[chosen.layer].writes, ...LAYERS[chosen.layer].reads]) groups.add(n);
  for (const node of view.querySelectorAll('.rail')) node.classList.toggle('dim', some && !groups.has(Number(node.dataset.g)));
  for (const node of view.querySelectorAll('.row, .dot, .ring')) node.classList.toggle('dim', some && !layers.has(Number(node.dataset.l)));
  byId('map-detail').replaceChildren(chosen.group !== null ? groupDetail(chosen.group, true)
    : chosen.layer !== null ? layerDetail(chosen.layer) : el('p', { class: 'soft' }, 'Nothing is selected.'));
}

function reveal() {
  const line = chosen.group !== null ? map.lanes.get(chosen.group) : null;
  const row = line ? line.from : map.rows.indexOf(chosen.layer);
  if (row < 0) return;
  const view = byId('map-view');
  view.scrollTop = yOf(row) * map.zoom - view.clientHeight / 3;
}

function showOnMap(n) {
  select(n, 'list');
  byId('map').scrollIntoView();
}

function step(by) {
  const order = [...map.lanes.values()].map((l) => l.g.n);
  if (!order.length) return;
  const now = order.indexOf(chosen.group);
  select(order[(now + by + order.length) % order.length], 'keys');
}

function dragging(view) { // a mouse drags the map; a finger scrolls it anyway
  let start = null;
  let moved = false;
  view.addEventListener('pointerdown', (e) => {
    if (e.pointerType === 'mouse' && e.button === 0) start = { x: e.clientX + view.scrollLeft, y: e.clientY + view.scrollTop };
    moved = false;
  });
  window.addEventListener('pointermove', (e) => {
    if (!start) return;
    const [x, y] = [start.x - e.clientX, start.y - e.clientY];
    if (!moved && Math.abs(x - view.scrollLeft) + Math.abs(y - view.scrollTop) < 5) return;
    moved = true;
    view.classList.add('drag');
    view.scrollTo(x, y);
  });
  window.addEventListener('pointerup', () => { start = null; view.classList.remove('drag'); });
  view.addEventListener('click', (e) => { if (moved) { e.stopPropagation(); moved = false; } }, true);
  view.addEventListener('wheel', (e) => {
    if (!e.ctrlKey && !e.metaKey) return;
    e.preventDefault();
    zoomTo(map.zoom * Math.exp(-e.deltaY / 300));
  }, { passive: false });
  view.addEventListener('keydown', (e) => {
    const by = { ArrowDown: 1, ArrowRight: 1, ArrowUp: -1, ArrowLeft: -1 }[e.key];
    if (by) { e.preventDefault(); step(by); }
    if (e.key === '+' || e.key === '=') zoomTo(map.zoom * 1.25);
    if (e.key === '-') zoomTo(map.zoom / 1.25);
    if (e.key === 'Escape') select(null, 'keys');
  });
}

function mapTools() {
  const find = el('input', { type: 'search', placeholder: 'Find a group or layer', 'aria-label': 'Find a group or layer on the map' });
  find.addEventListener('input', () => {
    const text = find.value.trim().toLowerCase();
    if (text.length < 2) return;
    const group = GROUPS.find((g) => g.name.toLowerCase().includes(text) && g.writes.length + g.reads.length);
    const layer = LAYERS.find((l) => l.name.toLowerCase().includes(text));
    if (group) select(group.n, 'find');
    else if (layer) selectLayer(layer.n);
  });
  const near = el('input', { type: 'checkbox' });
  near.checked = map.near;
  near.addEventListener('change', () => { map.near = near.checked; drawMap(); reveal(); });
  const button = (text, label, click) => el('button', { type: 'button', 'aria-label': label, onclick: click }, text);
  const fit = () => zoomTo((byId('map-view').clientWidth - 2) / map.width);
  byId('map-tools').append(find, el('label', {}, near, 'only around the selection'),
    el('span', {}, button('−', 'Smaller', () => zoomTo(map.zoom / 1.25)), ' ', button('+', 'Larger', () => zoomTo(map.zoom * 1.25)), ' ',
      button('Fit', 'Fit the width', fit)),
    el('span', { class: 'keys' }, el('span', {}, el('span', { class: 'key dot' }), 'makes'), el('span', {}, el('span', { class: 'key ring' }), 'reads'),
      ...(DATA.cut ? [el('span', {}, el('span', { class: 'key kept' }), 'kept'), el('span', {}, el('span', { class: 'key cut' }), 'cut')] : [])),
    el('span', { class: 'count', id: 'map-count', role: 'status' }));
}

if (byId('map-view') && LAYERS.length) {
  mapTools();
  dragging(byId('map-view'));
  drawMap();
  chosen.tell.push((from) => {
    if (map.near) drawMap();
    else mark();
    if (from !== 'map' || map.near) reveal();
  });
}

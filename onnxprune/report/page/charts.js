// Sensitivity curves of all groups, and the error of each layer.
const MOST_CURVES = 400;
const LABELLED = 8; // curves with their names, those with most MACs
const FLOOR = 1e-4;

function curves(host) {
  const width = Math.max(host.clientWidth, 280), height = width < 500 ? 240 : 320;
  const [l, r, t, b] = [64, width < 500 ? 14 : 190, 10, 36];
  const all = GROUPS.filter((g) => g.curve && g.curve.length > 1).sort((a, c) => c.macs - a.macs).slice(0, MOST_CURVES);
  const top = Math.max(...all.flatMap((g) => g.curve.map((p) => p[1])), FLOOR * 10);
  const [low, high] = [Math.log10(FLOOR), Math.ceil(Math.log10(top) - 1e-9)];
  const x = (share) => l + (width - l - r) * share;
  const y = (v) => t + (height - t - b) * (1 - (Math.log10(Math.max(v, FLOOR)) - low) / (high - low));
  const box = svg('svg', { viewBox: `0 0 ${width} ${height}`, height, role: 'img',
    'aria-label': `Error against the share of units removed, for ${all.length} groups; the list of groups has each curve` });
  for (let p = low; p <= high; p += 1) {
    box.append(svg('line', { class: 'grid', x1: l, x2: width - r, y1: y(10 ** p), y2: y(10 ** p) }),
      svg('text', { x: l - 8, y: y(10 ** p) + 4, 'text-anchor': 'end' }, p === low ? `≤ ${10 ** p}` : String(Number((10 ** p).toPrecision(1)))));
  }
  for (const s of [0, 0.25, 0.5, 0.75, 1]) {
    box.append(svg('text', { x: x(s), y: height - b + 18, 'text-anchor': s === 0 ? 'start' : s === 1 ? 'end' : 'middle' }, `${100 * s} %`));
  }
  box.append(svg('line', { class: 'axis', x1: l, x2: width - r, y1: height - b, y2: height - b }),
    svg('text', { x: x(0.5), y: height - 2, 'text-anchor': 'middle' }, 'units removed'));
  const what = el('p', { class: 'what', role: 'status' });
  const drawn = new Map();
  for (const g of all) {
    const d = g.curve.map((p, i) => `${i ? 'L' : 'M'}${x(p[0] / g.units).toFixed(1)} ${y(p[1]).toFixed(1)}`).join('');
    const path = svg('path', { class: 'curve', d });
    const dot = g.removed ? svg('circle', { class: 'at', r: 3.5, cx: x(g.removed / g.units), cy: y(at(g.curve, g.removed)) }) : null;
    drawn.set(g.n, [path, dot]);
    box.append(path);
  }
  for (const [, dot] of drawn.values()) if (dot) box.append(dot);
  if (r > 100) {
    const ends = all.slice(0, LABELLED).map((g) => ({ g, at: y(g.curve[g.curve.length - 1][1]) })).sort((a, c) => a.at - c.at);
    let last = t - 6;
    for (const end of ends) { // one below the other, with a line to where each belongs
      const from = end.at;
      const tip = x(end.g.curve[end.g.curve.length - 1][0] / end.g.units);
      end.at = Math.max(end.at, last + 14);
      last = end.at;
      box.append(svg('line', { class: 'lead-line', x1: tip, x2: width - r + 4, y1: from, y2: end.at }),
        svg('text', { x: width - r + 8, y: end.at + 4, class: 'name' }, middle(end.g.name, 26)));
    }
  }
  const light = (n) => {
    for (const [key, parts] of drawn) for (const part of parts) if (part) part.classList.toggle('on', key === n);
    if (!drawn.has(n)) { what.textContent = 'Point at a curve to see its group; click to select it.'; return; }
    const g = GROUPS[n];
    const cut = g.removed ? `, ${small(at(g.curve, g.removed))} with ${g.removed} of ${g.units} gone` : '';
    what.replaceChildren(el('code', {}, g.name), cut);
    box.append(...drawn.get(n).filter(Boolean));
  };
  const nearest = (e) => {
    const at0 = box.getBoundingClientRect();
    const [px, py] = [((e.clientX - at0.left) * width) / at0.width, ((e.clientY - at0.top) * height) / at0.height];
    let best = null, least = 24;
    for (const n of drawn.keys()) {
      const g = GROUPS[n];
      const share = (px - l) / (width - l - r);
      const last = g.curve[g.curve.length - 1][0] / g.units;
      if (share < 0 || share > last + 0.02) continue;
      const gap = Math.abs(y(at(g.curve, Math.min(share, last) * g.units)) - py);
      if (gap < least) [least, best] = [gap, n];
    }
    return best;
  };
  box.addEventListener('pointermove', (e) => light(nearest(e) ?? chosen.group));
  box.addEventListener('pointerleave', () => light(chosen.group));
  box.addEventListener('click', (e) => { const n = nearest(e); if (n !== null) select(n, 'curves'); });
  what.classList.add('pointed');
  host.replaceChildren(box, what);
  light(chosen.group);
  return light;
}

if (byId('curves')) {
  let light = curves(byId('curves'));
  let width = byId('curves').clientWidth;
  new ResizeObserver(() => {
    if (byId('curves').clientWidth === width) return;
    width = byId('curves').clientWidth;
    light = curves(byId('curves'));
  }).observe(byId('curves'));
  chosen.tell.push(() => light(chosen.group));
}

const fits = { worst: false, shown: 60 };
function drawFits() {
  const rows = fits.worst ? [...DATA.fits].sort((a, c) => c[4] - a[4]) : DATA.fits;
  const all = DATA.fits.flatMap((f) => [f[3], f[4]]).filter((v) => v > 0);
  const low = Math.floor(Math.log10(Math.max(Math.min(...all, 1), 1e-6)));
  const high = Math.ceil(Math.log10(Math.max(...all, 0.1)) + 1e-9);
  const x = (v) => (100 * Math.min(Math.max(Math.log10(Math.max(v, 1e-12)) - low, 0), high - low)) / (high - low);
  const lines = rows.slice(0, fits.shown).map(([layer, kept, of, before, after, variant]) => {
    const [a, c] = [x(before), x(after)];
    const label = `${small(before)} before, ${small(after)} after`;
    return el('div', { class: 'fit', title: `${kept} of ${of} channels read; ${variant}` },
      el('code', {}, middle(layer, 60)),
      el('div', { class: 'track', role: 'img', 'aria-label': label },
        el('span', { class: 'span', style: `left:${Math.min(a, c)}%;width:${Math.abs(a - c)}%` }),
        el('span', { class: 'pt old', style: `left:${a}%` }), el('span', { class: 'pt new', style: `left:${c}%` })),
      el('span', { class: 'n' }, small(before) === small(after) ? small(after) : `${small(before)} → ${small(after)}`));
  });
  const more = rows.length > fits.shown
    ? [el('button', { type: 'button', class: 'more', onclick: () => { fits.shown += 200; drawFits(); } }, `Show more of ${rows.length}`)]
    : [];
  byId('fits').replaceChildren(...lines, ...more);
}

if (byId('fits')) {
  const worst = el('input', { type: 'checkbox' });
  worst.addEventListener('change', () => { fits.worst = worst.checked; drawFits(); });
  byId('fit-tools').append(el('label', {}, worst, 'worst first'),
    el('span', { class: 'keys' }, el('span', {}, el('span', { class: 'key cut dot' }), 'old weights'),
      el('span', {}, el('span', { class: 'key kept dot' }), 'refitted')),
    el('span', { class: 'count' }, `${DATA.fits.length} layers, logarithmic scale`));
  drawFits();
}

// The list of groups: sorted, filtered, drawn a hundred rows at a time.
const PAGE = 100;
const list = { sort: 'order', up: true, text: '', cutOnly: false, shown: PAGE, open: new Set() };
const withCurves = GROUPS.some((g) => g.curve);
const COLUMNS = [
  ['order', 'Group', (g) => g.first, ''],
  ['left', DATA.cut ? 'Kept and cut' : 'Share of the MACs', (g) => (DATA.cut ? left(g) : g.macs), 'bar-cell'],
  ['units', DATA.cut ? 'Units kept' : 'Units', (g) => g.units, 'n'],
  ['params', 'Parameters', (g) => g.params, 'n hide'],
  ['macs', 'MACs', (g) => g.macs, 'n hide'],
  ...(withCurves ? [['curve', 'Sensitivity', (g) => (g.curve && g.curve.length ? at(g.curve, g.units / 2) : -1), 'hide']] : []),
];
const mostMacs = Math.max(...GROUPS.map((g) => g.macs), 1);

function spark(g) {
  if (!g.curve || g.curve.length < 2) return '';
  const [xs, ys] = [g.curve.map((p) => p[0]), g.curve.map((p) => p[1])];
  const [w, h] = [84, 22];
  const top = Math.max(...ys) || 1;
  const x = (v) => 2 + ((w - 4) * v) / xs[xs.length - 1];
  const y = (v) => h - 2 - ((h - 4) * v) / top;
  const path = g.curve.map((p, i) => `${i ? 'L' : 'M'}${x(p[0]).toFixed(1)} ${y(p[1]).toFixed(1)}`).join('');
  const dot = g.removed ? svg('circle', { cx: x(g.removed), cy: y(at(g.curve, g.removed)), r: 3 }) : null;
  const label = `error up to ${small(top)}${g.removed ? `, ${small(at(g.curve, g.removed))} at the cut` : ''}`;
  return svg('svg', { class: 'spark', viewBox: `0 0 ${w} ${h}`, role: 'img', 'aria-label': label }, svg('path', { d: path }), dot);
}

function bar(g) {
  if (!DATA.cut) {
    const share = g.macs / mostMacs;
    return el('div', { class: 'bar', style: 'background:none', role: 'img', 'aria-label': `${count(g.macs)} MACs` },
      el('i', { style: `width:${(100 * share).toFixed(1)}%` }));
  }
  const share = left(g);
  return el('div', { class: share === 1 ? 'bar whole' : 'bar', role: 'img', 'aria-label': `${percent(share)} kept` },
    el('i', { style: `width:${(100 * share).toFixed(1)}%` }));
}

function line(g) {
  const open = list.open.has(g.n);
  const by = g.maker ? ` of ${middle(g.maker, 44)}${g.writes.length > 1 ? ` and ${g.writes.length - 1} more` : ''}` : '';
  const note = `${g.kind}${by}${g.inexact ? ', inexact' : ''}`;
  const row = el('tr', { class: 'line' },
    el('td', {},
      el('button', { type: 'button', class: 'open', 'aria-expanded': String(open), onclick: () => toggle(g.n) }, g.name),
      el('div', { class: 'kind' }, note, g.back ? el('span', { class: 'flag' }, ', put back') : null),
      g.whole && !g.back ? el('div', { class: 'kind' }, `left whole: ${g.whole}`) : null),
    el('td', { class: 'bar-cell' }, bar(g)),
    el('td', { class: 'n' }, DATA.cut ? `${g.units - g.removed} / ${g.units}` : String(g.units)),
    el('td', { class: 'n hide' }, count(g.params)),
    el('td', { class: 'n hide' }, count(g.macs)),
    withCurves ? el('td', { class: 'hide' }, spark(g)) : null);
  return open ? [row, el('tr', {}, el('td', { colspan: COLUMNS.length }, groupDetail(g.n, false)))] : [row];
}

function toggle(n) {
  if (list.open.has(n)) list.open.delete(n);
  else list.open.add(n);
  drawGroups();
  for (const b of byId('group-list').querySelectorAll('.open')) if (b.textContent === GROUPS[n].name) b.focus();
}

function matching() {
  const words = list.text.toLowerCase().split(/\s+/).filter(Boolean);
  const key = COLUMNS.find((c) => c[0] === list.sort)[2];
  const sign = list.up ? 1 : -1;
  return GROUPS
    .filter((g) => (!list.cutOnly || g.removed > 0) && words.every((w) => `${g.name} ${g.kind} ${g.maker}`.toLowerCase().includes(w)))
    .sort((a, b) => sign * (key(a) - key(b)) || a.n - b.n);
}

function heading([name, text, , style]) {
  const sort = list.sort === name ? (list.up ? 'ascending' : 'descending') : null;
  const click = () => {
    list.up = list.sort === name ? !list.up : name === 'order' || name === 'left';
    list.sort = name;
    drawGroups();
  };
  return el('th', { class: style, scope: 'col', 'aria-sort': sort }, el('button', { type: 'button', onclick: click }, text));
}

function drawGroups() {
  const found = matching();
  const more = found.length > list.shown
    ? el('button', { type: 'button', class: 'more', onclick: () => { list.shown += 3 * PAGE; drawGroups(); } },
      `Show ${Math.min(3 * PAGE, found.length - list.shown)} more of ${found.length}`)
    : null;
  byId('group-list').replaceChildren(
    el('table', { class: 'groups' }, el('thead', {}, el('tr', {}, ...COLUMNS.map(heading))),
      el('tbody', {}, ...found.slice(0, list.shown).flatMap(line))),
    ...(more ? [more] : []));
  byId('group-count').textContent = found.length === GROUPS.length ? `${found.length} groups` : `${found.length} of ${GROUPS.length}`;
}

if (byId('group-list')) {
  const change = (what) => () => { what(); list.shown = PAGE; drawGroups(); };
  const search = el('input', { type: 'search', placeholder: 'Filter by name or kind', 'aria-label': 'Filter groups' });
  search.addEventListener('input', change(() => { list.text = search.value; }));
  const sort = el('select', { 'aria-label': 'Sort groups' }, ...[['order up', 'In the model’s order'], ['left up', 'Most cut first'],
    ['units down', 'Most units'], ['params down', 'Most parameters'], ['macs down', 'Most MACs'],
    ...(withCurves ? [['curve down', 'Most sensitive']] : [])]
    .filter(([v]) => DATA.cut || v !== 'left up').map(([value, text]) => el('option', { value }, text)));
  sort.addEventListener('change', change(() => { const [name, way] = sort.value.split(' '); list.sort = name; list.up = way === 'up'; }));
  const only = el('input', { type: 'checkbox' });
  only.addEventListener('change', change(() => { list.cutOnly = only.checked; }));
  byId('group-tools').append(search, sort, ...(DATA.cut ? [el('label', {}, only, 'only what was cut')] : []),
    ...(DATA.cut ? [el('span', { class: 'keys' }, el('span', {}, el('span', { class: 'key kept' }), 'kept'),
      el('span', {}, el('span', { class: 'key cut' }), 'cut'))] : []),
    el('span', { class: 'count', id: 'group-count', role: 'status' }));
  drawGroups();
}

// What is known of one group or one layer.
function fact(name, text) { return text === '' ? [] : [el('dt', {}, name), el('dd', {}, text)]; }

function links(title, items, make) {
  if (!items.length) return null;
  return el('div', {}, el('h5', {}, `${title} (${items.length})`), el('ul', {}, ...items.map((i) => el('li', {}, make(i)))));
}
const toLayer = (n) => el('button', { type: 'button', class: 'link', onclick: () => selectLayer(n) }, LAYERS[n].name);
const toGroup = (g) => el('button', { type: 'button', class: 'link', onclick: () => select(g.n, 'detail') }, g.name);

function groupDetail(n, inMap) {
  const g = GROUPS[n];
  const kept = g.units - g.removed;
  const others = (coupled.get(g.component) || []).filter((o) => o !== g);
  const more = g.more ? [el('li', { class: 'soft' }, `and ${g.more} more`)] : [];
  return el('div', { class: 'detail' },
    inMap ? el('h4', {}, g.name) : null,
    g.back ? el('p', { class: 'flag' }, `Put back: ${g.back}`) : null,
    g.whole && !g.back ? el('p', { class: 'soft' }, `Left whole: ${g.whole}`) : null,
    el('dl', { class: 'facts' },
      ...fact('units', DATA.cut ? `${kept} of ${g.units} kept (${g.kind})` : `${g.units} (${g.kind})`),
      ...fact('parameters', `${count(g.params)}, ${percent(g.params / DATA.parameters)} of all`),
      ...fact('MACs', `${count(g.macs)}${DATA.macs ? `, ${percent(g.macs / DATA.macs)} of all` : ''}`),
      ...fact('error at the cut', g.curve && g.removed ? small(at(g.curve, g.removed)) : ''),
      ...fact('inexact', g.inexact ? 'a cut changes an average or a maximum' : '')),
    el('div', { class: 'cols' },
      links('Written by', g.writes, toLayer),
      links('Read by', g.reads, toLayer),
      links('Coupled with', others, toGroup),
      el('div', {}, el('h5', {}, `What shrinks (${g.tensors.length + g.more})`),
        el('ul', {}, ...g.tensors.map((t) => el('li', {}, el('code', {}, t))), ...more))),
    inMap || !LAYERS.length ? null
      : el('p', { style: 'margin-top:10px' }, el('button', { type: 'button', onclick: () => showOnMap(n) }, 'Show on the map')));
}

const shape = (dims) => dims.join(' × ');
function layerDetail(n) {
  const layer = LAYERS[n];
  const changed = shape(layer.shape) !== shape(layer.left);
  const [before, after] = layer.macs;
  return el('div', { class: 'detail' },
    el('h4', {}, layer.name),
    el('dl', { class: 'facts' },
      ...fact('op', layer.op),
      ...fact('weight', shape(layer.shape)),
      ...fact('left', changed ? shape(layer.left) : 'all of it'),
      ...fact('MACs', before ? (changed || after !== before ? `${count(after)} of ${count(before)}` : count(before)) : '')),
    el('div', { class: 'cols' },
      links('Writes', layer.writes.map((g) => GROUPS[g]), toGroup),
      links('Reads', layer.reads.map((g) => GROUPS[g]), toGroup)),
    layer.writes.length || layer.reads.length ? null
      : el('p', { class: 'soft' }, 'Its axes are frozen: ', el('a', { href: '#frozen' }, 'why')));
}

function at(curve, removed) { // the error after so many units, between the points that are known
  for (let i = 0; i < curve.length; i += 1) {
    const [x, y] = curve[i];
    if (x === removed || (x > removed && i === 0)) return y;
    if (x > removed) {
      const [u, v] = curve[i - 1];
      return v + ((y - v) * (removed - u)) / (x - u);
    }
  }
  return curve.length ? curve[curve.length - 1][1] : 0;
}

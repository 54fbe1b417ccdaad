// Light, dark, or as the system has it.
const byId = (id) => document.getElementById(id);

const store = {
  get() { try { return localStorage.getItem('onnxprune-theme'); } catch { return null; } },
  set(value) { try { localStorage.setItem('onnxprune-theme', value); } catch { /* a file may have no storage */ } },
};
function theme(value) {
  if (value === 'system') delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = value;
  byId('theme').textContent = `Theme: ${value}`;
}
const THEMES = ['system', 'light', 'dark'];
let themed = THEMES.includes(store.get()) ? store.get() : 'system';
theme(themed);
byId('theme').hidden = false;
byId('theme').addEventListener('click', () => {
  themed = THEMES[(THEMES.indexOf(themed) + 1) % 3];
  theme(themed);
  store.set(themed);
});

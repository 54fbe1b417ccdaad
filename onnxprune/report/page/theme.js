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

for (const button of document.querySelectorAll('button.copy')) { // a page that is a file may have no clipboard
  const code = button.parentNode.querySelector('code');
  button.hidden = false;
  button.setAttribute('aria-label', `Copy the command ${code.textContent.slice(0, 40)}`);
  button.addEventListener('click', async () => {
    let done = true;
    try {
      await navigator.clipboard.writeText(code.textContent);
    } catch {
      getSelection().selectAllChildren(code);
      done = document.execCommand('copy');
    }
    button.textContent = done ? 'Copied' : 'Selected';
    setTimeout(() => { button.textContent = 'Copy'; }, 1500);
  });
}

"use strict";
// A click on an id copies it. Browsers that keep the clipboard from files get the older way.
document.addEventListener("click", async event => {
  const button = event.target.closest("button.id");
  if (!button) return;
  const text = button.textContent;
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    const field = document.createElement("textarea");
    field.value = text;
    document.body.append(field);
    field.select();
    document.execCommand("copy");
    field.remove();
  }
  button.dataset.copied = "";
  setTimeout(() => delete button.dataset.copied, 1200);
});

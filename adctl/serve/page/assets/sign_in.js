// Signing in: the key becomes a cookie that scripts cannot read.
import { act, call } from "./api.js";
import { find } from "./dom.js";

const form = find("#sign-in");

form.addEventListener("submit", (event) => {
  event.preventDefault();
  act(find("button", form), async () => {
    await call("/v1/session", { json: { key: form.key.value } });
    const next = new URLSearchParams(location.search).get("next") ?? "/";
    // Only addresses of this server are followed.
    location.assign(/^\/(?!\/)/.test(next) ? next : "/");
  });
});

// The controls that every page has: language, theme, signing out.
import { act, call } from "./api.js";
import { find } from "./dom.js";

find("#language").addEventListener("change", (event) => {
  document.cookie = `adctl_language=${event.target.value}; Path=/; Max-Age=31536000; SameSite=Strict`;
  location.reload();
});

find("#theme").addEventListener("click", () => {
  const root = document.documentElement;
  root.dataset.theme = root.dataset.theme === "dark" ? "light" : "dark";
  localStorage.setItem("adctl-theme", root.dataset.theme);
});

find("#sign-out")?.addEventListener("click", (event) => act(event.target, async () => {
  await call("/v1/session", { method: "DELETE" });
  location.assign("/sign-in");
}));

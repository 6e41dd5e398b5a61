// Choice of a model, which all tabs share within a session.
import { call } from "./api.js";
import { find, make } from "./dom.js";

const KEY = "adctl-model";

/** Fill the select field `#model` with the loaded models; `changed` is called with the chosen one. Returns the models. */
export async function chooseModel(changed = () => {}) {
  const models = await call("/v1/models");
  const loaded = models.filter((model) => model.loaded);
  const field = find("#model");
  field.append(...loaded.map((model) => make("option", { value: model.name }, model.name)));
  const kept = sessionStorage.getItem(KEY);
  if (loaded.some((model) => model.name === kept)) field.value = kept;
  const chosen = () => loaded.find((model) => model.name === field.value) ?? null;
  field.addEventListener("change", () => {
    sessionStorage.setItem(KEY, field.value);
    changed(chosen());
  });
  await changed(chosen());
  return models;
}

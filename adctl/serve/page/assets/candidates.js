// The candidate that reviewed parts make of a model, beside the present one.
import { make } from "./dom.js";

export const candidatePanel = () => make("div", { hidden: true });

// What is known of the false alarms of a threshold, in sentences.
import { percent, t } from "./text.js";

/** Return the sentences for an answer of the threshold's route. */
export function promise(answer) {
  const sentences = [];
  if (answer.promised_false_alarm !== null) {
    sentences.push(t("promise.guaranteed", { share: percent(answer.promised_false_alarm), images: answer.good_images }));
  } else {
    sentences.push(t("promise.expected", { share: percent(answer.expected_false_alarm), images: answer.good_images }));
  }
  if (answer.promised_false_alarm === null && answer.false_alarm_interval) {
    const [low, high] = answer.false_alarm_interval;
    sentences.push(t("promise.interval", { low: percent(low, 1), high: percent(high, 1) }));
  }
  sentences.push(t("promise.count", { above: answer.good_above, images: answer.good_images }));
  return sentences;
}

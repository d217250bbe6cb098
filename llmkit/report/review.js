// The script of review.py: shows one pair at a time, keeps the choices in this browser, hands them out as ratings.json.
// Every text of the data is set as text, never as markup.
"use strict";
(() => {
  const FORMAT = "llmkit-review-1";
  const CHOICES = ["left", "right", "tie", "bad"];
  const KEYS = {
    ArrowLeft: "left", 1: "left", ArrowRight: "right", 2: "right", 0: "tie", " ": "tie", b: "bad", B: "bad",
    Backspace: "back", n: "note", N: "note",
  };
  const SAY = {
    en: {
      lead: "Which answer would you rather get? Two models wrote them; which is which is shuffled and not in this page.",
      rater: "Your name", other: "中文", left: "Left", right: "Right", remark: "Note on this question",
      choose_left: "Left is better", choose_right: "Right is better", choose_tie: "Equally good", choose_bad: "Both bad",
      back: "Back", note: "Note", export: "Download ratings.json", restart: "Start over",
      sure: "Forget all ratings?", done: "All rated. Thank you!", progress: "rated",
      hand_in: "Put in your name, download ratings.json and hand it to whoever sent you this page.",
      count: (at, all, rated) => `Question ${at} of ${all} · ${rated} rated`,
      tally: (n) => `Left ${n.left} · right ${n.right} · equal ${n.tie} · both bad ${n.bad}`,
      roles: { user: "User", assistant: "Assistant", system: "System", tool: "Tool" }, empty: "(empty answer)",
    },
    zh: {
      lead: "您更愿意得到哪个回答？两个回答来自两个模型；左右已打乱，本页面不含哪边是哪个模型的信息。",
      rater: "您的姓名", other: "English", left: "左", right: "右", remark: "对本题的备注",
      choose_left: "左边更好", choose_right: "右边更好", choose_tie: "一样好", choose_bad: "都不好",
      back: "上一题", note: "备注", export: "下载 ratings.json", restart: "重新开始",
      sure: "清除全部评分？", done: "全部评完，谢谢！", progress: "已评",
      hand_in: "请填写姓名，下载 ratings.json，并交给发给您本页面的人。",
      count: (at, all, rated) => `第 ${at} 题，共 ${all} 题 · 已评 ${rated} 题`,
      tally: (n) => `左 ${n.left} · 右 ${n.right} · 相同 ${n.tie} · 都不好 ${n.bad}`,
      roles: { user: "用户", assistant: "助手", system: "系统", tool: "工具" }, empty: "（空回答）",
    },
  };
  const $ = (id) => document.getElementById(id);
  const { review, pairs } = JSON.parse($("pairs").textContent);
  const STORE = `llmkit-review:${review}`;
  const state = restore();
  let at = next(-1);
  let since = now();

  function now() {
    return performance.now() / 1000;
  }

  // What an earlier visit kept, as far as it is whole and of these pairs; a browser may forbid to look.
  function restore() {
    const fresh = { rater: "", language: (navigator.language || "").startsWith("zh") ? "zh" : "en", ratings: new Map() };
    let kept = null;
    try {
      kept = JSON.parse(localStorage.getItem(STORE));
    } catch {
      return fresh;
    }
    if (!kept || typeof kept !== "object") return fresh;
    const items = new Set(pairs.map((pair) => pair.item));
    for (const one of Array.isArray(kept.ratings) ? kept.ratings : []) {
      if (!one || !items.has(one.item)) continue;
      fresh.ratings.set(one.item, {
        choice: CHOICES.includes(one.choice) ? one.choice : null,
        seconds: Number.isFinite(one.seconds) && one.seconds >= 0 ? one.seconds : 0,
        note: typeof one.note === "string" ? one.note : "",
      });
    }
    if (typeof kept.rater === "string") fresh.rater = kept.rater.slice(0, 200);
    if (Object.hasOwn(SAY, kept.language)) fresh.language = kept.language;
    return fresh;
  }

  function ratings() {
    return pairs.filter((pair) => state.ratings.has(pair.item)).map((pair) => ({ item: pair.item, ...state.ratings.get(pair.item) }));
  }

  function keep() {
    try {
      localStorage.setItem(STORE, JSON.stringify({ rater: state.rater, language: state.language, ratings: ratings() }));
    } catch {
      // Then a reload begins anew, as the browser wishes.
    }
  }

  function rating(item) {
    if (!state.ratings.has(item)) state.ratings.set(item, { choice: null, seconds: 0, note: "" });
    return state.ratings.get(item);
  }

  function rated(pair) {
    return Boolean(state.ratings.get(pair.item)?.choice);
  }

  // The first pair after `place` without a rating, else the first of all without one, else none: the end.
  function next(place) {
    const later = pairs.findIndex((pair, number) => number > place && !rated(pair));
    const any = later >= 0 ? later : pairs.findIndex((pair) => !rated(pair));
    return any >= 0 ? any : pairs.length;
  }

  function go(place) {
    spend();
    at = place;
    draw();
    $(at < pairs.length ? "question" : "done").focus({ preventScroll: true });
    scrollTo(0, 0);
  }

  // Time counts while the question is on the screen.
  function spend() {
    if (at < pairs.length && !document.hidden) rating(pairs[at].item).seconds += now() - since;
    since = now();
  }

  const ACTIONS = {
    back: () => at > 0 && go(at - 1),
    note: () => {
      if (at >= pairs.length) return;
      $("remark").hidden = false;
      $("remark").querySelector("textarea").focus();
    },
  };
  for (const choice of CHOICES) {
    ACTIONS[choice] = () => {
      if (at >= pairs.length) return;
      rating(pairs[at].item).choice = choice;
      go(next(at));
      keep();
    };
  }

  function draw() {
    const say = SAY[state.language];
    const count = pairs.filter(rated).length;
    document.documentElement.lang = state.language;
    for (const one of document.querySelectorAll("[data-say]")) one.textContent = say[one.dataset.say];
    $("language").textContent = say.other;
    $("language").lang = state.language === "zh" ? "en" : "zh";
    $("progress").max = Math.max(1, pairs.length);
    $("progress").value = count;
    $("progress").setAttribute("aria-label", say.progress);
    $("count").textContent = at < pairs.length ? say.count(at + 1, pairs.length, count) : "";
    $("question").hidden = at >= pairs.length;
    $("done").hidden = at < pairs.length;
    $("back").disabled = at === 0;
    $("note").disabled = at >= pairs.length;
    for (const one of document.querySelectorAll("[data-choice]")) one.disabled = at >= pairs.length;
    if (at < pairs.length) drawPair(pairs[at], say);
    else $("tally").textContent = say.tally(Object.fromEntries(CHOICES.map((choice) => [choice, ratings().filter((one) => one.choice === choice).length])));
  }

  function drawPair(pair, say) {
    $("prompt").replaceChildren(...pair.prompt.map((turn) => {
      const row = document.createElement("div");
      row.className = "turn";
      const who = document.createElement("b");
      who.textContent = Object.hasOwn(say.roles, turn.role) ? say.roles[turn.role] : turn.role;
      const said = document.createElement("div");
      said.className = "said";
      fill(said, turn, "");
      row.append(who, said);
      return row;
    }));
    for (const side of ["left", "right"]) fill($(side).querySelector(".said"), pair[side], say.empty);
    const kept = state.ratings.get(pair.item);
    for (const one of document.querySelectorAll("[data-choice]")) {
      one.setAttribute("aria-pressed", String(kept?.choice === one.dataset.choice));
    }
    $("remark").hidden = !kept?.note;
    $("remark").querySelector("textarea").value = kept?.note ?? "";
  }

  function fill(place, { text, lang }, empty) {
    place.textContent = text || empty;
    place.classList.toggle("quiet", !text);
    place.dir = "auto";
    if (lang) place.lang = lang;
    else place.removeAttribute("lang");
  }

  function download() {
    spend();
    const entries = ratings().filter((one) => one.choice).map(({ note, ...one }) => ({
      ...one, seconds: Math.round(10 * one.seconds) / 10, ...(note && { note }),
    }));
    const text = JSON.stringify({ format: FORMAT, review, rater: state.rater, ratings: entries }, null, 1);
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([text], { type: "application/json" }));
    link.download = "ratings.json";
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
  }

  function restart() {
    if (!confirm(SAY[state.language].sure)) return;
    state.ratings.clear();
    state.rater = $("rater").value = "";
    at = 0;
    since = now();
    keep();
    go(0);
  }

  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing || event.repeat) return;
    const field = event.target.closest("input, textarea");
    if (field) {
      if (event.key === "Escape" || (event.key === "Enter" && field.matches("input"))) field.blur();
      return;
    }
    // A button that has the focus takes its space itself.
    if (event.key === " " && event.target.closest("button")) return;
    const action = ACTIONS[KEYS[event.key]];
    if (!action) return;
    event.preventDefault();
    action();
  });
  document.addEventListener("click", (event) => {
    const choice = event.target.closest("[data-choice]")?.dataset.choice;
    if (choice) ACTIONS[choice]();
  });
  document.addEventListener("visibilitychange", () => {
    if (document.hidden && at < pairs.length) rating(pairs[at].item).seconds += now() - since;
    since = now();
    keep();
  });
  addEventListener("pagehide", () => {
    spend();
    keep();
  });
  $("back").addEventListener("click", ACTIONS.back);
  $("note").addEventListener("click", ACTIONS.note);
  $("export").addEventListener("click", download);
  $("restart").addEventListener("click", restart);
  $("language").addEventListener("click", () => {
    state.language = state.language === "zh" ? "en" : "zh";
    keep();
    draw();
  });
  $("rater").value = state.rater;
  $("rater").addEventListener("input", (event) => {
    state.rater = event.target.value;
    keep();
  });
  $("remark").querySelector("textarea").addEventListener("input", (event) => {
    if (at < pairs.length) rating(pairs[at].item).note = event.target.value;
    keep();
  });
  draw();
})();

"""Titles as shops write them: words of one language, written for this benchmark, around a brand or product in Latin
letters. The brand is in front, in the middle or at the end; a space separates it from the rest in every language.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

BRANDS: tuple[str, ...] = (
    "Samsung Galaxy S10 Plus", "Apple iPhone 15 Pro Max", "Nike Air Max 90", "Sony PlayStation 5", "Canon EOS R6",
    "Bosch Professional GSR 12V", "Xiaomi Redmi Note 12", "Adidas Originals", "Lego Star Wars", "BMW X5",
    "HP LaserJet Pro", "Philips Hue", "Garmin Fenix 7", "Louis Vuitton", "Microsoft Surface Pro", "DeWalt",
    "Dell XPS 13", "Ray-Ban Wayfarer", "Makita DHP484", "Lord of the Rings", "Calvin Klein", "Jack Daniel's",
    "Coca-Cola Zero", "Tefal", "Hugo Boss", "Logitech MX Master 3S", "The North Face", "GoPro Hero 11 Black",
    "Toyota Land Cruiser", "Huawei MatePad",
)  # fmt: skip
# Each phrase in pieces; the brand goes before the first, between two, or behind the last.
SHORT: Mapping[str, str] = {
    "ru": "чехол для|чёрный; кожаная|сумка женская; ремень для|часов; новые зимние|ботинки; детская|куртка синяя; "
    "чайник|электрический стеклянный; набор|отвёрток домашний; футболка|мужская белая; лампа|настольная "
    "светодиодная; "
    "запчасти|для двигателя",
    "uk": "чохол для|чорний; шкіряна|сумка жіноча; ремінець для|годинника; нові зимові|черевики; дитяча|куртка синя; "
    "чайник|електричний скляний; набір|викруток домашній; футболка|чоловіча біла; лампа|настільна світлодіодна; "
    "запчастини|для двигуна",
    "ar": "غطاء حماية|أسود; حقيبة|جلدية نسائية; حزام|ساعة ذكية; حذاء|شتوي جديد; سترة|أطفال زرقاء; "
    "غلاية ماء|زجاجية; طقم|مفكات منزلي; قميص|رجالي أبيض; مصباح|مكتب صغير; قطع غيار|للمحرك",
    "hi": "काला|चमड़े का कवर; महिलाओं का|हैंडबैग; घड़ी का|नया पट्टा; सर्दियों के|जूते; बच्चों की|नीली जैकेट; "
    "काँच की|बिजली केतली; घरेलू|औज़ार सेट; पुरुषों की|सफ़ेद कमीज़; मेज़ का|छोटा लैंप; इंजन के|पुराने पुर्ज़े",
    "th": "เคส|หนังสีดำ; กระเป๋า|สะพายผู้หญิง; สาย|นาฬิกาใหม่; รองเท้า|ฤดูหนาว; เสื้อ|กันหนาวเด็ก; กาน้ำ|ไฟฟ้าแก้ว; "
    "ชุด|ไขควงในบ้าน; เสื้อยืด|ผู้ชายสีขาว; โคมไฟ|ตั้งโต๊ะ; อะไหล่|เครื่องยนต์",
    "ko": "가죽|케이스 검정색; 여성용|핸드백 신상; 시계|줄 교체용; 겨울|부츠 신제품; 어린이|파란색 재킷; "
    "유리|전기 주전자; "
    "가정용|드라이버 세트; 남성용|흰색 티셔츠; 책상용|작은 조명; 엔진|부품 중고",
    "ja": "黒い|革のケース; 女性用|ハンドバッグ; 腕時計の|交換ベルト; 冬の|新しいブーツ; 子供用|青いジャケット; "
    "ガラスの|電気ケトル; 家庭用|ドライバーセット; 男性用|白いシャツ; 机の|小さなランプ; エンジンの|部品",
    "zh": "黑色|皮革手机壳; 女士|真皮手提包; 手表|替换表带; 冬季|新款靴子; 儿童|蓝色外套; 玻璃|电热水壶; "
    "家用|螺丝刀套装; "
    "男士|白色衬衫; 桌面|小台灯; 发动机|维修配件",
}
LONG: Mapping[str, str] = {
    "ru": "чёрный кожаный чехол для телефона|с защитой камеры; большая дорожная сумка|на колёсах из прочной ткани; "
    "сменный ремешок для умных часов|из мягкой кожи; тёплые зимние ботинки|для мужчин с мехом; "
    "набор инструментов для дома|в удобном пластиковом ящике; старая фотография улицы|после дождя вечером",
    "uk": "чорний шкіряний чохол для телефону|із захистом камери; велика дорожня сумка|на колесах із міцної тканини; "
    "змінний ремінець для розумного годинника|з м'якої шкіри; теплі зимові черевики|для чоловіків із хутром; "
    "набір інструментів для дому|у зручній пластиковій скриньці; стара світлина вулиці|після дощу ввечері",
    "ar": "غطاء جلدي أسود للهاتف|مع حماية للكاميرا; حقيبة سفر كبيرة|بعجلات من قماش متين; "
    "حزام بديل للساعة الذكية|من الجلد الناعم; حذاء شتوي دافئ|للرجال مبطن بالفرو; "
    "مجموعة أدوات للمنزل|في صندوق بلاستيكي عملي; صورة قديمة للشارع|بعد المطر في المساء",
    "hi": "फ़ोन के लिए काला चमड़े का कवर|कैमरे की सुरक्षा के साथ; पहियों वाला बड़ा यात्रा बैग|मज़बूत कपड़े का; "
    "स्मार्ट घड़ी के लिए नया पट्टा|मुलायम चमड़े से बना; पुरुषों के लिए गर्म जूते|सर्दियों के मौसम में; "
    "घर के लिए औज़ारों का सेट|प्लास्टिक के डिब्बे में; बारिश के बाद शाम को|सड़क की पुरानी तस्वीर",
    "th": "เคสหนังสีดำสำหรับโทรศัพท์|พร้อมที่กันกล้อง; กระเป๋าเดินทางใบใหญ่|มีล้อทำจากผ้าหนา; "
    "สายนาฬิกาอัจฉริยะเส้นใหม่|ทำจากหนังนุ่ม; "
    "รองเท้าบูทกันหนาว|สำหรับผู้ชายบุขนสัตว์; ชุดเครื่องมือสำหรับบ้าน|ในกล่องพลาสติก; ภาพถ่ายเก่าของถนน|หลังฝนตกตอนเย็น",
    "ko": "카메라를 보호하는 검은색|가죽 휴대폰 케이스; 바퀴가 달린 튼튼한|대형 여행 가방; 부드러운 가죽으로 "
    "만든|스마트 시계 줄; "
    "털이 있는 따뜻한|남성용 겨울 부츠; 플라스틱 상자에 담긴|가정용 공구 세트; 비가 온 저녁|거리의 오래된 사진",
    "ja": "カメラを守る黒い革の|スマートフォンケース; 車輪が付いた丈夫な布の|大きな旅行かばん; "
    "柔らかい革で作られた|腕時計の交換ベルト; "
    "毛皮の付いた暖かい|男性用の冬のブーツ; プラスチックの箱に入った|家庭用の工具セット; "
    "雨上がりの夕方の|通りの古い写真",
    "zh": "带镜头保护的黑色|真皮手机保护壳; 结实面料制成的带轮子|大号旅行箱; 柔软皮革制作的|智能手表替换表带; "
    "毛绒内里的保暖|男士冬季靴子; 装在塑料盒里的|家用工具套装; 雨后傍晚街道的|老照片",
}
# The brand's letters are these languages' own: nothing distinguishes them.
LATIN: Mapping[str, str] = {
    "en": "black leather case for|with camera protection; large travel bag|on wheels made of strong fabric; "
    "replacement strap for the smart watch|of soft leather; warm winter boots for men|lined with fur; "
    "tool set for the home|in a handy plastic box; old photograph of the street|after the rain",
    "vi": "ốp lưng da màu đen cho|có bảo vệ máy ảnh; túi du lịch cỡ lớn|có bánh xe bằng vải bền; "
    "dây đeo thay thế cho đồng hồ|bằng da mềm; giày mùa đông ấm|cho nam lót lông; bộ dụng cụ gia đình|trong "
    "hộp nhựa tiện lợi; "
    "bức ảnh cũ về con đường|sau cơn mưa",
    "pl": "czarne skórzane etui na|z ochroną aparatu; duża torba podróżna|na kółkach z mocnej tkaniny; "
    "wymienny pasek do zegarka|z miękkiej skóry; ciepłe zimowe buty dla mężczyzn|z futerkiem; "
    "zestaw narzędzi do domu|w wygodnej skrzynce; stara fotografia ulicy|po deszczu",
    "tr": "siyah deri kılıf|kamera korumalı telefon için; büyük seyahat çantası|sağlam kumaştan tekerlekli; "
    "akıllı saat için yedek kayış|yumuşak deriden; erkekler için sıcak kışlık bot|içi tüylü; "
    "ev için alet takımı|kullanışlı plastik kutuda; sokağın eski fotoğrafı|yağmurdan sonra",
    "de": "schwarze Lederhülle für|mit Schutz für die Kamera; große Reisetasche|auf Rollen aus festem Stoff; "
    "Ersatzarmband für die Uhr|aus weichem Leder; warme Winterstiefel für Herren|mit Fell gefüttert; "
    "Werkzeugkoffer für zu Hause|im handlichen Kasten; altes Foto der Straße|nach dem Regen",
    "nl": "zwart leren hoesje voor|met bescherming voor de camera; grote reistas|op wielen van stevige stof; "
    "vervangend bandje voor het horloge|van zacht leer; warme winterlaarzen voor heren|met bont gevoerd; "
    "gereedschapsset voor thuis|in een handige doos; oude foto van de straat|na de regen",
    "fr": "étui en cuir noir pour|avec protection de la caméra; grand sac de voyage|à roulettes en tissu solide; "
    "bracelet de rechange pour la montre|en cuir souple; bottes d'hiver chaudes pour homme|doublées de fourrure; "
    "jeu d'outils pour la maison|dans une boîte pratique; vieille photo de la rue|après la pluie",
    "it": "custodia in pelle nera per|con protezione della fotocamera; grande borsa da viaggio|con ruote in "
    "tessuto robusto; "
    "cinturino di ricambio per l'orologio|in pelle morbida; stivali invernali caldi da uomo|foderati di pelliccia; "
    "set di attrezzi per la casa|in una scatola comoda; vecchia fotografia della strada|dopo la pioggia",
    "es": "funda de cuero negro para|con protección de la cámara; bolsa de viaje grande|con ruedas de tela "
    "resistente; "
    "correa de recambio para el reloj|de piel suave; botas de invierno para hombre|forradas de pelo; "
    "juego de herramientas para casa|en una caja práctica; fotografía antigua de la calle|después de la lluvia",
    "pt": "capa de couro preta para|com proteção da câmera; mala de viagem grande|com rodas de tecido resistente; "
    "pulseira de reposição para o relógio|de couro macio; botas de inverno para homem|forradas de pelo; "
    "jogo de ferramentas para casa|em uma caixa prática; fotografia antiga da rua|depois da chuva",
}


def titles(phrases: Mapping[str, str]) -> Iterator[tuple[str, str, int]]:
    """Yield (title, language, number of its phrase): every phrase with every brand, at one of three places in turn."""
    for language, written in phrases.items():
        for number, phrase in enumerate(written.split("; ")):
            pieces = [piece.strip() for piece in phrase.split("|")]
            for place, brand in enumerate(BRANDS):
                yield _around(pieces, brand, (place + number) % 3), language, number


def _around(pieces: Sequence[str], brand: str, place: int) -> str:
    at = (0, 1, len(pieces))[place]
    return " ".join([*pieces[:at], brand, *pieces[at:]])
